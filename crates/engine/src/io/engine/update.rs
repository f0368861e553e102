//! `docker update`.

use shoal_api::container::{Resources, RestartPolicy};

use super::{Engine, EngineError};
use crate::core::{config, limits};

impl Engine {
    /// What of these limits this host's kernel does not offer, in docker's words. Such limits are discarded.
    pub fn limit_warnings(&self, limits: &Resources) -> Vec<String> {
        self.discard_unsupported(&mut limits.clone())
    }

    pub(super) fn discard_unsupported(&self, limits: &mut Resources) -> Vec<String> {
        let cgroups = &self.inner.cgroups;
        let mut warnings = Vec::new();
        let v1 = cgroups.version() == 1;
        let weight = cgroups.offers("blkio", "blkio.bfq.weight")
            || cgroups.offers("blkio", "blkio.weight")
            || (!v1 && cgroups.offers("", "io.bfq.weight"));
        if limits.blkio_weight.is_some() && !weight {
            limits.blkio_weight = None;
            warnings.push("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.");
        }
        if limits.blkio_devices.remove("BlkioWeightDevice").is_some() {
            warnings.push("Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.");
        }
        if limits.oom_kill_disable && !cgroups.offers("memory", "memory.oom_control") {
            limits.oom_kill_disable = false;
            warnings.push("Your kernel does not support OomKillDisable. OomKillDisable discarded.");
        }
        if limits.memory_swappiness.is_some() && !cgroups.offers("memory", "memory.swappiness") {
            limits.memory_swappiness = None;
            warnings.push("Your kernel does not support memory swappiness capabilities, or the cgroup is not mounted. Memory swappiness discarded.");
        }
        if limits.memory_swap_bytes.is_some_and(|swap| swap > 0) && !cgroups.has_swap_limit() {
            limits.memory_swap_bytes = None;
            warnings.push("Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.");
        }
        warnings.into_iter().map(str::to_owned).collect()
    }

    /// Changes limits and the restart policy of a container, at once when it runs. Nothing is changed when anything
    /// is refused by us; what the kernel refuses is told, and its limits are those from before.
    pub async fn update(
        &self,
        name: &str,
        change: &Resources,
        restart: Option<RestartPolicy>,
    ) -> Result<(), EngineError> {
        let entry = self.find(name)?;
        let _op = entry.op.lock().await;
        let record = entry.record();
        if record.removed {
            return Err(EngineError::NoSuchContainer(name.to_owned()));
        }
        if restart.is_some_and(|policy| policy != RestartPolicy::No) && record.spec.host.auto_remove
        {
            return Err(EngineError::Invalid(
                "Restart policy cannot be updated because AutoRemove is enabled for the container"
                    .into(),
            ));
        }
        let mut spec = record.spec.clone();
        let mut change = change.clone();
        self.discard_unsupported(&mut change);
        spec.host.resources = limits::update(&record.spec.host.resources, &change)?;
        if let Some(restart) = restart {
            spec.host.restart = restart;
        }
        config::check(&spec)?;
        if record.state.status.is_up() && spec.host.resources != record.spec.host.resources {
            let cgroups = &self.inner.cgroups;
            let group = self.group_of(&record);
            let applied = cgroups.apply(&group, &spec.host.resources);
            if let Err(err) = applied {
                // Back to what was; the kernel took those limits once.
                let _ = cgroups.apply(&group, &record.spec.host.resources);
                return Err(EngineError::io("update", "the control group")(err));
            }
        }
        entry.update(|record| record.spec = spec);
        self.tell(&entry.record(), "update", &[]);
        Ok(())
    }
}
