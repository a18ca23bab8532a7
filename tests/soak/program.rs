//! The relay's program, which must be that of this source.

use std::process::Command;

use crate::support::process::binary;

/// Builds it beside this program when cargo runs us: `cargo run --bin soak` builds the soak alone. Without cargo it must
/// be there.
pub fn build_relay() -> Result<(), String> {
    let path = binary();
    let Some(cargo) = std::env::var_os("CARGO") else {
        return if path.exists() {
            Ok(())
        } else {
            Err(format!(
                "the relay is missing: {}; build it by `cargo build --release`",
                path.display()
            ))
        };
    };
    let mut build = Command::new(cargo);
    build
        .args(["build", "--locked", "--quiet", "--bin", "outbox-relay"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    // What cargo told us about this package would make build scripts run again that look at it.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            build.env_remove(&*name);
        }
    }
    let status = build
        .status()
        .map_err(|error| format!("cargo can't be run: {error}"))?;
    if status.success() && path.exists() {
        return Ok(());
    }
    Err(format!(
        "the relay could not be built beside the soak, at {}",
        path.display()
    ))
}
