//! The self-test: a probe container that looks at its own walls.

use std::io;

use shoal_api::container::{ContainerId, ContainerSpec};
use tokio::net::UnixStream;
use tokio_stream::StreamExt;

use super::{Engine, make_private};
use crate::core::capabilities::CapabilitySet;
use crate::core::oci::{self, Netns, Surroundings};
use crate::core::selftest::{Facts, judge};
use crate::io::shim_client::{ShimEvent, ShimHandle, StreamRefused, attach, open_streams};
use crate::io::volumes::random_bytes;
use crate::shim::protocol::{Launch, LogSetup, Reply, Request, Streams, Supervise};

use super::prepare::write_launch;

impl Engine {
    /// Runs the probe and judges what it saw. An error says what is wrong with this host.
    pub(super) async fn run_self_test(&self) -> Result<(), String> {
        let id = ContainerId::from_bytes(random_bytes());
        let dir = self.inner.config.run_dir.join("probe");
        let run_dir = self.run_dir_of(&id);
        let outcome = self.probe_host(&id, &dir, &run_dir).await;
        self.inner
            .cgroups
            .remove(&self.inner.cgroups.group(None, id.as_str()))
            .await;
        let _ = std::fs::remove_dir_all(&run_dir);
        let _ = std::fs::remove_dir_all(&dir);
        judge(&outcome?, CapabilitySet::docker_default().0)
    }

    async fn probe_host(
        &self,
        id: &ContainerId,
        dir: &std::path::Path,
        run_dir: &std::path::Path,
    ) -> Result<Facts, String> {
        make_private(dir).map_err(|err| err.report())?;
        make_private(run_dir).map_err(|err| err.report())?;
        let text = |err: io::Error| err.to_string();
        let spec = ContainerSpec {
            cmd: Some(vec!["probe".into()]),
            ..ContainerSpec::default()
        };
        let around = Surroundings {
            cgroup: std::path::Path::new("/").join(self.inner.cgroups.group(None, id.as_str())),
            netns: Netns::Inherited,
            hostname: "probe".into(),
            ..Surroundings::default()
        };
        let oci = oci::spec(&spec, &around).map_err(|err| err.to_string())?;
        self.put_filter(run_dir, &spec, &oci)
            .map_err(|err| err.report())?;
        let group = self.inner.cgroups.group(None, id.as_str());
        let made = self.inner.cgroups.make(
            &group,
            &spec.host.resources,
            &[],
            &oci::rules(&spec.host, &[]),
        );
        made.map_err(|err| err.to_string())?;
        let launch = Launch {
            spec: oci,
            user: String::new(),
            group_add: Vec::new(),
            layers: Vec::new(),
            volatile: true,
            populate: Vec::new(),
            loopback_only: true,
            staged: Vec::new(),
            init: false,
            probe: true,
        };
        write_launch(run_dir, &launch).map_err(|err| err.report())?;
        let supervise = Supervise {
            id: id.to_string(),
            start: 0,
            container_dir: dir.to_owned(),
            run_dir: run_dir.to_owned(),
            tty: false,
            console_size: None,
            open_stdin: false,
            stdin_once: false,
            log: LogSetup::default(),
            cgroups: self.inner.cgroups.dirs(&group),
            own_pids: true,
        };
        let control = self.inner.nursery.launch(&supervise).map_err(text)?;
        control.set_nonblocking(true).map_err(text)?;
        let (shim, mut events) = ShimHandle::new(UnixStream::from_std(control).map_err(text)?);
        let streams = Streams {
            stdout: true,
            ..Streams::default()
        };
        let connection = open_streams(run_dir, &Request::Attach(streams))
            .await
            .map_err(|err| match err {
                StreamRefused::Io(err) => err.to_string(),
                StreamRefused::Failed(failure) => failure.message,
            })?;
        let mut output =
            attach(Box::pin(async { Some(connection) }), streams, false, |_| {}).output;
        match shim.ask(Request::Start).await.map_err(text)? {
            Reply::Failed(failure) => Err(failure.message),
            _ => {
                let mut json = Vec::new();
                while let Some((_, bytes)) = output.next().await {
                    json.extend_from_slice(&bytes);
                }
                while let Some(ShimEvent::Exited { .. }) = events.recv().await {}
                serde_json::from_slice(&json)
                    .map_err(|err| format!("the probe's report is not readable: {err}"))
            }
        }
    }
}
