//! The Java that runs Kafka.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Oldest Java that Kafka's server runs on.
pub(super) const MAJOR_MIN: u32 = 17;

/// A Java of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Java {
    /// The `java` program.
    pub program: PathBuf,
    /// Its major version, 17 for 17.0.15.
    pub major: u32,
}

/// The first Java that is new enough for Kafka (17), of `JAVA_HOME` and then of the `PATH`.
#[must_use]
pub fn java() -> Option<Java> {
    let home = std::env::var_os("JAVA_HOME").filter(|home| !home.is_empty());
    let of_home = home.map(|home| PathBuf::from(home).join("bin/java"));
    of_home
        .into_iter()
        .chain([PathBuf::from("java")])
        .find_map(|program| {
            let output = Command::new(&program)
                .arg("-version")
                .stdin(Stdio::null())
                .output()
                .ok()?;
            let major = major(&String::from_utf8_lossy(&output.stderr))?;
            (major >= MAJOR_MIN).then_some(Java { program, major })
        })
}

/// The major version in what `java -version` prints, such as `openjdk version "17.0.15" 2025-04-15`.
fn major(printed: &str) -> Option<u32> {
    let quoted = printed.split('"').nth(1)?;
    let mut numbers = quoted.split(|c: char| !c.is_ascii_digit());
    let first = numbers.next()?.parse().ok()?;
    // Up to 8 the version was written 1.8.
    if first == 1 {
        return numbers.next()?.parse().ok();
    }
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn reads_the_major_version() {
        assert_eq!(major("openjdk version \"17.0.15\" 2025-04-15\nx"), Some(17));
        assert_eq!(major("Picked up X\njava version \"1.8.0_392\"\n"), Some(8));
        assert_eq!(major("openjdk version \"25-ea\" 2025-09-16"), Some(25));
        assert_eq!(major("openjdk version \"21\" 2023-09-19"), Some(21));
        assert_eq!(major("command not found"), None);
    }
}
