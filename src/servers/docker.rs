//! Servers in containers of the local Docker daemon.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use testcontainers::bollard::Docker;
use testcontainers::bollard::models::PortBinding;
use testcontainers::core::IntoContainerPort;
use testcontainers::core::client::docker_client_instance;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::time::Instant;

use super::{Progress, Servers, ServersError};

const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// From the start of the container; a slow pull is not part of it.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// True when a Docker daemon of this machine answers within 2 s. A remote one does not count: its
/// ports would not be on our loopback interface.
pub async fn docker_answers() -> bool {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    if !host.is_empty() && !host.starts_with("unix://") {
        return false;
    }
    let ping = async {
        let Ok(client) = docker_client_instance().await else {
            return false;
        };
        client.ping().await.is_ok()
    };
    tokio::time::timeout(PING_TIMEOUT, ping)
        .await
        .unwrap_or(false)
}

/// Starts a container, or returns nothing when the caller should turn to binaries: there is no
/// daemon, or it cannot get the default image, as on a machine without an image registry. An image
/// that was `named` explicitly is not replaced by anything else.
pub(super) async fn container(
    servers: &Servers,
    recipe: Recipe,
    named: bool,
) -> Result<Option<Arc<Container>>, ServersError> {
    if !docker_answers().await {
        return Ok(None);
    }
    match Container::start_new(recipe, &servers.progress).await {
        Ok(container) => {
            let container = Arc::new(container);
            servers.own(&container);
            Ok(Some(container))
        }
        Err(error) if named => Err(error),
        Err(error) => {
            let sentence = format!("{error}; taking binaries from Maven Central instead");
            servers.progress.say(&sentence);
            Ok(None)
        }
    }
}

/// What a container is to run.
pub(super) struct Recipe {
    /// "PostgreSQL" or "Kafka", for messages.
    pub(super) server: &'static str,
    /// Name with an optional tag.
    pub(super) image: String,
    /// Port inside the container.
    pub(super) inner_port: u16,
    /// Port of 127.0.0.1, fixed so that the address outlives a restart.
    pub(super) host_port: u16,
    pub(super) variables: Vec<(String, String)>,
    pub(super) arguments: Vec<String>,
}

/// A running or stopped container.
pub(super) struct Container {
    server: &'static str,
    client: Docker,
    inner: ContainerAsync<GenericImage>,
}

impl Container {
    /// Pulls the image if need be, and starts a container from it.
    async fn start_new(recipe: Recipe, progress: &Progress) -> Result<Self, ServersError> {
        let Recipe { server, image, .. } = &recipe;
        progress.say(&format!("starting {server} in a container of {image}"));
        let client = docker_client_instance()
            .await
            .map_err(docker("be reached"))?;
        let doing = format!("start a container of {image}");
        let (name, tag) = split_image(image);
        let (inner_port, host_port) = (recipe.inner_port, recipe.host_port);
        let mut request = GenericImage::new(name, tag)
            .with_exposed_port(inner_port.tcp())
            .with_mapped_port(host_port, inner_port.tcp())
            .with_host_config_modifier(move |config| {
                let binding = PortBinding {
                    host_ip: Some("127.0.0.1".to_owned()),
                    host_port: Some(host_port.to_string()),
                };
                let bindings = HashMap::from([(format!("{inner_port}/tcp"), Some(vec![binding]))]);
                config.port_bindings = Some(bindings);
            });
        for (name, value) in recipe.variables {
            request = request.with_env_var(name, value);
        }
        if !recipe.arguments.is_empty() {
            request = request.with_cmd(recipe.arguments);
        }
        let inner = request.start().await.map_err(docker(doing))?;
        Ok(Self {
            server: recipe.server,
            client,
            inner,
        })
    }

    pub(super) fn id(&self) -> &str {
        self.inner.id()
    }

    /// SIGKILL to the server, and to whatever else runs in the container.
    pub(super) async fn kill9(&self) -> Result<(), ServersError> {
        self.client
            .kill_container(self.id(), None)
            .await
            .map_err(docker(format!("kill {}", self.server)))?;
        // The call returns before the container has stopped.
        self.inner
            .stop_with_timeout(Some(0))
            .await
            .map_err(docker(format!("stop {}", self.server)))
    }

    /// The image's own orderly stop, within 10 s.
    pub(super) async fn stop(&self) -> Result<(), ServersError> {
        self.inner
            .stop_with_timeout(Some(10))
            .await
            .map_err(docker(format!("stop {}", self.server)))
    }

    /// Starts the stopped container again.
    pub(super) async fn start(&self) -> Result<(), ServersError> {
        self.inner
            .start()
            .await
            .map_err(docker(format!("start {}", self.server)))
    }

    pub(super) async fn freeze(&self) -> Result<(), ServersError> {
        self.inner
            .pause()
            .await
            .map_err(docker(format!("pause {}", self.server)))
    }

    pub(super) async fn thaw(&self) -> Result<(), ServersError> {
        self.inner
            .unpause()
            .await
            .map_err(docker(format!("unpause {}", self.server)))
    }

    /// Asks `ready` again and again until it is true, or the container ends, or time is over.
    pub(super) async fn wait_until<F: Future<Output = bool>>(
        &self,
        ready: impl Fn() -> F,
    ) -> Result<(), ServersError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if ready().await {
                return Ok(());
            }
            let running = self.inner.is_running().await.unwrap_or(false);
            if running && Instant::now() < deadline {
                tokio::time::sleep(POLL).await;
                continue;
            }
            let reason = if running {
                format!("it was not ready within {} s", READY_TIMEOUT.as_secs())
            } else {
                "its container ended".to_owned()
            };
            return Err(ServersError::Start {
                server: self.server,
                reason,
                log_tail: self.log_tail().await,
            });
        }
    }

    async fn log_tail(&self) -> String {
        let mut log = self.inner.stdout_to_vec().await.unwrap_or_default();
        log.extend(self.inner.stderr_to_vec().await.unwrap_or_default());
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Removes the container with its volumes. A failure is only logged: the reaper tries, too.
    pub(super) async fn remove(self: Arc<Self>) {
        let options = testcontainers::bollard::query_parameters::RemoveContainerOptions {
            force: true,
            v: true,
            ..Default::default()
        };
        if let Err(error) = self.client.remove_container(self.id(), Some(options)).await {
            tracing::debug!("cannot remove the container {}: {error}", self.id());
        }
        // Its destructor would complain that it is gone.
        self.keep();
    }

    /// Leaves the container alone: its destructor, which would remove it, never runs.
    pub(super) fn keep(self: Arc<Self>) {
        std::mem::forget(self);
    }
}

fn docker<E: ToString>(doing: impl Into<String>) -> impl FnOnce(E) -> ServersError {
    let doing = doing.into();
    move |error| ServersError::Docker {
        doing,
        reason: error.to_string(),
    }
}

/// Name and tag of an image; the colon of a registry's port does not count.
fn split_image(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::split_image;

    #[test]
    fn splits_at_the_tag_only() {
        assert_eq!(split_image("postgres:17"), ("postgres", "17"));
        assert_eq!(
            split_image("host:5000/kafka"),
            ("host:5000/kafka", "latest")
        );
        assert_eq!(split_image("host:5000/kafka:4"), ("host:5000/kafka", "4"));
    }
}
