//! `RUN`: a container that is committed when it has ended.

use shoal_api::{
    container::{
        ContainerFilter, ContainerId, ContainerSpec, ContainerStatus, HealthCheck, HostSpec,
        LogConfig, StdStream,
    },
    image::{ImageId, Platform},
};
use tokio_stream::StreamExt;

use super::{BuildError, Builder, Log, stage::Current};
use crate::{
    core::images::Digest,
    io::{
        engine::{Engine, WaitCondition},
        images::ImageRecord,
    },
    shim::protocol::Streams,
};

/// Marks the container of a step, for a daemon that finds it after the one that built was killed.
const STEP_LABEL: &str = "shoal.build.step";

impl Engine {
    /// Removes containers of builds that ended with an earlier daemon. Those of steps that had failed before are the
    /// user's to look into.
    pub(in crate::io) async fn remove_abandoned_steps(&self) {
        let marked = ContainerFilter {
            all: true,
            label: vec![STEP_LABEL.to_owned()],
            ..ContainerFilter::default()
        };
        for container in self.list(&marked).await.unwrap_or_default() {
            let status = container.state.status;
            if !status.is_up() && status != ContainerStatus::Created {
                continue;
            }
            if let Err(error) = self.remove(container.id.as_str(), true, true).await {
                tracing::warn!(container.id = %container.id, error = error.report(), "cannot remove the container of an abandoned build");
            }
        }
    }
}

impl Builder {
    pub(super) async fn run_command(
        &mut self,
        current: &mut Current,
        words: Vec<String>,
        env: Vec<String>,
        created_by: String,
    ) -> Result<(), BuildError> {
        let image = self.record(current)?;
        let options = &self.options;
        let spec = ContainerSpec {
            image: image.id.short().to_owned(),
            entrypoint: Some(Vec::new()),
            cmd: Some(words.clone()),
            env,
            labels: [(STEP_LABEL.to_owned(), String::new())].into(),
            healthcheck: Some(HealthCheck {
                test: vec!["NONE".to_owned()],
                ..HealthCheck::default()
            }),
            host: HostSpec {
                network_mode: options.network.clone(),
                extra_hosts: options.extra_hosts.clone(),
                resources: options.resources.clone(),
                shm_size: options.shm_size,
                ulimits: options.ulimits.clone(),
                cgroup_parent: options.cgroup_parent.clone(),
                security_opt: options.security_opt.clone(),
                log: LogConfig {
                    driver: Some("none".to_owned()),
                    ..LogConfig::default()
                },
                ..HostSpec::default()
            },
            ..ContainerSpec::default()
        };
        let id = self.engine.create_of(spec, &image).await?;
        let mut container = Container {
            engine: self.engine.clone(),
            id: Some(id.clone()),
        };
        self.log
            .say(format!(" ---> Running in {}\n", id.short()))
            .await;
        let ended = self.run_to_end(&id).await;
        let failed = !matches!(ended, Ok(0));
        if failed && !self.options.remove_failed {
            // For the user to look into, as docker leaves it.
            container.id = None;
        }
        let code = ended?;
        if code != 0 {
            container.remove(&self.log).await;
            return Err(BuildError::Command {
                command: words.join(" "),
                code,
            });
        }
        let written = self.engine.written_by(&id);
        self.commit(current, created_by, written).await?;
        if self.options.keep_containers {
            container.id = None;
        }
        container.remove(&self.log).await;
        Ok(())
    }

    /// Runs a container and tells what it says. Returns its exit code.
    async fn run_to_end(&self, id: &ContainerId) -> Result<i32, BuildError> {
        let streams = Streams {
            stdin: false,
            stdout: true,
            stderr: true,
        };
        let mut output = self.engine.attach(id.as_str(), streams).await?.output;
        let end = self.engine.wait(id.as_str(), WaitCondition::NextExit)?;
        self.engine.start(id.as_str()).await?;
        let mut halves = [Vec::new(), Vec::new()];
        while let Some((stream, bytes)) = output.next().await {
            let is_error = stream == StdStream::Stderr;
            let half = &mut halves[usize::from(is_error)];
            half.extend_from_slice(&bytes);
            let text = whole_text(half);
            if text.is_empty() {
                continue;
            }
            // docker paints what goes to standard error.
            let text = if is_error {
                format!("\x1b[91m{text}\x1b[0m")
            } else {
                text
            };
            self.log.say(text).await;
        }
        Ok(end.await.exit_code)
    }

    /// The image so far, as a container needs it.
    fn record(&self, current: &Current) -> Result<ImageRecord, BuildError> {
        match &current.image {
            Some(id) => Ok(self.engine.images().resolve(&id.to_string())?),
            None => Ok(ImageRecord {
                id: ImageId::from(&Digest::of(b"scratch")),
                config: current.state.config.clone(),
                platform: Platform::default(),
                created: Default::default(),
                layers: Vec::new(),
                repo_tags: Vec::new(),
                repo_digests: Vec::new(),
                size: 0,
            }),
        }
    }
}

/// The container of a step. One that nobody removed or let go of is removed when it is dropped, with the build.
struct Container {
    engine: Engine,
    id: Option<ContainerId>,
}

impl Container {
    async fn remove(&mut self, log: &Log) {
        let Some(id) = self.id.take() else { return };
        match self.engine.remove(id.as_str(), true, true).await {
            Ok(()) => {
                log.say(format!("Removing intermediate container {}\n", id.short()))
                    .await;
            }
            Err(error) => {
                tracing::warn!(container.id = %id, error = error.report(), "cannot remove the container of a step")
            }
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let engine = self.engine.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { engine.remove(id.as_str(), true, true).await });
        }
    }
}

/// Takes the text off a buffer, but for a last character of which a part is still to come.
fn whole_text(bytes: &mut Vec<u8>) -> String {
    let end = match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        // Cut within a character; anything else that is no text will not become one.
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => bytes.len(),
    };
    let rest = bytes.split_off(end);
    let text = String::from_utf8_lossy(bytes).into_owned();
    *bytes = rest;
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_cut_in_two_are_put_together() {
        let mut buffer = b"a\xc3".to_vec();
        assert_eq!(whole_text(&mut buffer), "a");
        buffer.push(0xbc);
        assert_eq!(whole_text(&mut buffer), "ü");
        buffer.extend_from_slice(b"\xff\n");
        assert_eq!(whole_text(&mut buffer), "\u{fffd}\n");
    }
}
