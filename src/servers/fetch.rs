//! Pinned files of Maven Central, in the user's cache folder.
//!
//! A file gets its final name only after its checksum was right, so whatever has that name is whole
//! and needs no second look. Two processes may fetch the same file; the later rename wins with the
//! same bytes.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::{ServersError, io, is_root, lock, open_to_others};

/// Where the pinned files come from, unless `OUTBOX_RELAY_MAVEN_BASE_URL` says otherwise.
const MAVEN_CENTRAL: &str = "https://repo1.maven.org/maven2";

/// Where systems keep the certificates that they trust, as one file.
const CERTIFICATE_FILES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The larger part of the wait for many small files is latency, so a few at a time are enough.
const THREADS: usize = 4;
const ATTEMPTS: u32 = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// For one whole file, the largest of which has 71 MB.
const FILE_TIMEOUT: Duration = Duration::from_secs(600);

/// One pinned file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Artifact {
    /// In lower-case hexadecimal digits.
    pub(super) sha256: &'static str,
    /// Below the base address.
    pub(super) path: &'static str,
}

impl Artifact {
    /// The last part of the path.
    pub(super) fn file_name(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }
}

/// Reads a manifest: one `sha256  path` per line, as `sha256sum` prints it.
pub(super) fn parse_manifest(text: &'static str) -> Vec<Artifact> {
    text.lines()
        .filter_map(|line| {
            let (sha256, path) = line.split_once("  ")?;
            Some(Artifact { sha256, path })
        })
        .collect()
}

/// The folder that fetched files stay in. For root it is one that other accounts can enter, since
/// PostgreSQL's programs run as another account then.
pub(super) fn cache_folder() -> Result<PathBuf, ServersError> {
    let folder = if is_root() {
        PathBuf::from("/var/cache/outbox-relay")
    } else {
        user_cache().ok_or_else(|| {
            ServersError::Missing("HOME is not set, so there is no cache folder".to_owned())
        })?
    };
    std::fs::create_dir_all(&folder).map_err(io(format!("create {}", folder.display())))?;
    if is_root() {
        open_to_others(&folder)?;
    }
    Ok(folder)
}

fn user_cache() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_CACHE_HOME").or_else(|| {
        let home = absolute("HOME")?;
        let below = if cfg!(target_os = "macos") {
            "Library/Caches"
        } else {
            ".cache"
        };
        Some(home.join(below))
    })?;
    Some(base.join("outbox-relay"))
}

/// The artifacts that are not in `folder` yet.
pub(super) fn missing(artifacts: &[Artifact], folder: &Path) -> Vec<Artifact> {
    artifacts
        .iter()
        .filter(|artifact| !folder.join(artifact.file_name()).is_file())
        .cloned()
        .collect()
}

/// Fetches the artifacts into `folder`, some at a time. Blocks.
///
/// `base` is the address of a mirror, or nothing for Maven Central.
pub(super) fn fetch(
    artifacts: &[Artifact],
    folder: &Path,
    base: Option<&str>,
) -> Result<(), ServersError> {
    let base = base.unwrap_or(MAVEN_CENTRAL).trim_end_matches('/');
    let agent = agent();
    let waiting = Mutex::new(artifacts.iter());
    let failed = AtomicBool::new(false);
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            // Bound first, so that the lock is not held during the download.
            let next = lock(&waiting).next();
            let Some(artifact) = next else { break };
            if let Err(error) = fetch_one(&agent, artifact, folder, base) {
                failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS.min(artifacts.len()))
            .map(|_| scope.spawn(work))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(fetch_error(base, "a download thread panicked")))
        })
    })
}

fn agent() -> ureq::Agent {
    let tls = TlsConfig::builder().root_certs(root_certificates()).build();
    ureq::Agent::config_builder()
        .tls_config(tls)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_global(Some(FILE_TIMEOUT))
        .build()
        .into()
}

/// The certificates that this machine trusts, so that a company's proxy with its own authority
/// works; the web's usual ones where there is no such file.
fn root_certificates() -> RootCerts {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = CERTIFICATE_FILES.iter().map(PathBuf::from);
    let Some(pem) = named
        .into_iter()
        .chain(usual)
        .find_map(|path| std::fs::read(path).ok())
    else {
        return RootCerts::WebPki;
    };
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    RootCerts::from(certificates)
}

#[expect(
    clippy::disallowed_methods,
    reason = "runs on a download thread, outside the runtime"
)]
fn fetch_one(
    agent: &ureq::Agent,
    artifact: &Artifact,
    folder: &Path,
    base: &str,
) -> Result<(), ServersError> {
    let url = format!("{base}/{}", artifact.path);
    let mut attempt = 1;
    loop {
        match download(agent, &url, artifact, folder) {
            Err(error) if attempt < ATTEMPTS => {
                tracing::debug!("attempt {attempt} failed: {error}");
                std::thread::sleep(Duration::from_secs(1) * attempt);
                attempt += 1;
            }
            result => return result,
        }
    }
}

fn download(
    agent: &ureq::Agent,
    url: &str,
    artifact: &Artifact,
    folder: &Path,
) -> Result<(), ServersError> {
    let response = agent.get(url).call().map_err(|e| fetch_error(url, e))?;
    let mut body = response.into_body().into_reader();
    let mut file = tempfile::NamedTempFile::new_in(folder)
        .map_err(io(format!("create a file in {}", folder.display())))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = body.read(&mut buffer).map_err(|e| fetch_error(url, e))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        file.write_all(&buffer[..read])
            .map_err(io(format!("write into {}", folder.display())))?;
    }
    let actual = hexadecimal(&hash.finalize());
    if actual != artifact.sha256 {
        let reason = format!("its SHA-256 is {actual}, but {} is pinned", artifact.sha256);
        return Err(fetch_error(url, reason));
    }
    let target = folder.join(artifact.file_name());
    file.persist(&target)
        .map_err(|error| io(format!("create {}", target.display()))(error.error))?;
    Ok(())
}

/// An error about the file or address `what`.
pub(super) fn fetch_error(what: &str, reason: impl ToString) -> ServersError {
    ServersError::Fetch {
        what: what.to_owned(),
        reason: reason.to_string(),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manifest_line_is_whole() {
        for text in [
            include_str!("kafka.sha256"),
            include_str!("postgres.sha256"),
        ] {
            let artifacts = parse_manifest(text);
            assert_eq!(artifacts.len(), text.lines().count());
            for artifact in artifacts {
                assert_eq!(artifact.sha256.len(), 64);
                assert!(artifact.file_name().ends_with(".jar"));
            }
        }
    }

    #[test]
    fn file_name_is_the_last_part() {
        let artifacts = parse_manifest("ab  org/x/1/x-1.jar\n");
        assert_eq!(artifacts[0].file_name(), "x-1.jar");
        assert_eq!(artifacts[0].sha256, "ab");
    }

    #[test]
    fn hexadecimal_has_two_digits_per_byte() {
        assert_eq!(hexadecimal(&[0, 10, 255]), "000aff");
    }
}
