//! Health checks: an exec at intervals, and a verdict.

use std::sync::Arc;
use std::time::Duration;

use shoal_api::Timestamp;
use shoal_api::container::{ExecSpec, Health, HealthCheck, HealthProbe, HealthStatus};
use tokio_stream::StreamExt;

use super::record::{Entry, Record};
use super::{Engine, EngineError};
use crate::core::health;

/// Output kept of a probe, as in Docker.
const OUTPUT_MAX: usize = 4096;

impl Engine {
    /// Probes a container until this run ends. A `fresh` run begins without a verdict; one taken over keeps its own.
    pub(super) fn watch_health(&self, entry: &Arc<Entry>, fresh: bool) {
        let record = entry.record();
        let check = record.spec.healthcheck.clone();
        let Some((check, command)) =
            check.and_then(|check| health::command(&check).map(|command| (check, command)))
        else {
            if record.state.health.is_some() {
                entry.update(|record| record.state.health = None);
            }
            return;
        };
        if fresh || record.state.health.is_none() {
            entry.update(|record| record.state.health = Some(Health::default()));
        }
        let (engine, entry, start) = (self.clone(), entry.clone(), record.start);
        tokio::spawn(async move {
            let mut watch = entry.watch();
            let over = move |record: &Arc<Record>| {
                record.removed || record.start != start || !record.state.status.is_up()
            };
            tokio::select! {
                _ = watch.wait_for(over) => {}
                () = engine.probe_at_intervals(&entry, &check, &command) => {}
            }
        });
    }

    async fn probe_at_intervals(
        &self,
        entry: &Arc<Entry>,
        check: &HealthCheck,
        command: &[String],
    ) {
        loop {
            let record = entry.record();
            let health = record.state.health.clone().unwrap_or_default();
            let up = Timestamp::now().since(record.state.started_at);
            // The check's interval, which is a duration by definition.
            tokio::time::sleep(health::pause(check, &health, up)).await;
            let start = Timestamp::now();
            let timeout = check
                .timeout
                .filter(|timeout| !timeout.is_zero())
                .unwrap_or(health::TIMEOUT);
            let (exit_code, output) = self.probe(entry, command, timeout).await;
            let probe = HealthProbe {
                start,
                end: Timestamp::now(),
                exit_code,
                output,
            };
            let record = entry.record();
            let up = probe.end.since(record.state.started_at);
            let before = record.state.health.clone().unwrap_or_default();
            let after = health::judge(check, before.clone(), probe, up);
            let news = (after.status != before.status).then_some(after.status);
            entry.update(|record| record.state.health = Some(after));
            if let Some(status) = news.filter(|status| *status != HealthStatus::Starting) {
                self.tell(
                    &entry.record(),
                    &format!("health_status: {}", status.as_str()),
                    &[],
                );
            }
        }
    }

    /// Runs one probe; -1 when it could not run or took too long.
    async fn probe(
        &self,
        entry: &Arc<Entry>,
        command: &[String],
        timeout: Duration,
    ) -> (i32, String) {
        let spec = ExecSpec {
            cmd: command.to_vec(),
            attach_stdout: true,
            attach_stderr: true,
            ..ExecSpec::default()
        };
        let id = match self.exec_create(entry.id.as_str(), spec) {
            Ok(id) => id,
            Err(err) => return (-1, err.report()),
        };
        let mut output = Vec::new();
        let run = async {
            let mut streams = self.exec_start(&id).await?;
            while let Some((_, bytes)) = streams.output.next().await {
                let room = OUTPUT_MAX - output.len();
                output.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Ok::<_, EngineError>(())
        };
        let ended = tokio::time::timeout(timeout, run).await;
        let code = match ended {
            Ok(Ok(())) => self
                .exec_inspect(&id)
                .ok()
                .and_then(|exec| exec.exit_code)
                .unwrap_or(-1),
            Ok(Err(err)) => {
                output = err.report().into_bytes();
                -1
            }
            Err(_) => {
                self.exec_kill(entry, &id).await;
                output = format!("Health check exceeded timeout ({timeout:?})").into_bytes();
                -1
            }
        };
        entry.live(|live| live.execs.remove(&id));
        (code, String::from_utf8_lossy(&output).into_owned())
    }
}
