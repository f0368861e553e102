//! `shoal service update`: what to add to a spec, what to take out, what to set.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Map, Value};

use super::{
    image::registry_auth,
    service::{self, Wait, pin_image},
    service_flags::{Settings, at},
    service_parts::{References, add_reach_labels, generic_resource, host_line, preference, words},
};
use crate::{
    client::{Client, Target},
    flags::{capabilities, environment, mount, pair, port},
    json::{number, text},
    output,
};

/// Update a service
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal service update --image nginx:1.27 web\n  shoal service update --env-add LEVEL=debug --publish-rm 80 web\n  shoal service update --force web"
)]
pub(crate) struct Update {
    /// Name or id
    service: String,
    /// Service image tag
    #[arg(long, value_name = "string")]
    image: Option<String>,
    /// Service command args
    #[arg(long, value_name = "command", allow_hyphen_values = true)]
    args: Option<String>,
    /// Force update even if no changes require it
    #[arg(long)]
    force: bool,
    /// Rollback to previous specification
    #[arg(long)]
    rollback: bool,
    /// Add or update a service label
    #[arg(long, value_name = "list")]
    label_add: Vec<String>,
    /// Remove a label by its key
    #[arg(long, value_name = "list")]
    label_rm: Vec<String>,
    /// Add or update a container label
    #[arg(long, value_name = "list")]
    container_label_add: Vec<String>,
    /// Remove a container label by its key
    #[arg(long, value_name = "list")]
    container_label_rm: Vec<String>,
    /// Add or update an environment variable
    #[arg(long, value_name = "list")]
    env_add: Vec<String>,
    /// Remove an environment variable
    #[arg(long, value_name = "list")]
    env_rm: Vec<String>,
    /// Add or update a mount on a service
    #[arg(long, value_name = "mount")]
    mount_add: Vec<String>,
    /// Remove a mount by its target path
    #[arg(long, value_name = "list")]
    mount_rm: Vec<String>,
    /// Add or update a published port
    #[arg(long, value_name = "port")]
    publish_add: Vec<String>,
    /// Remove a published port by its target port
    #[arg(long, value_name = "port")]
    publish_rm: Vec<String>,
    /// Add a network
    #[arg(long, value_name = "network")]
    network_add: Vec<String>,
    /// Remove a network
    #[arg(long, value_name = "list")]
    network_rm: Vec<String>,
    /// Add or update a placement constraint
    #[arg(long, value_name = "list")]
    constraint_add: Vec<String>,
    /// Remove a constraint
    #[arg(long, value_name = "list")]
    constraint_rm: Vec<String>,
    /// Add a placement preference
    #[arg(long, value_name = "pref")]
    placement_pref_add: Vec<String>,
    /// Remove a placement preference
    #[arg(long, value_name = "pref")]
    placement_pref_rm: Vec<String>,
    /// Add or update a secret on a service
    #[arg(long, value_name = "secret")]
    secret_add: Vec<String>,
    /// Remove a secret
    #[arg(long, value_name = "list")]
    secret_rm: Vec<String>,
    /// Add or update a config file on a service
    #[arg(long, value_name = "config")]
    config_add: Vec<String>,
    /// Remove a configuration file
    #[arg(long, value_name = "list")]
    config_rm: Vec<String>,
    /// Add or update a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "list")]
    host_add: Vec<String>,
    /// Remove a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "list")]
    host_rm: Vec<String>,
    /// Add an additional supplementary user group to the container
    #[arg(long, value_name = "list")]
    group_add: Vec<String>,
    /// Remove a previously added supplementary user group from the container
    #[arg(long, value_name = "list")]
    group_rm: Vec<String>,
    /// Add or update a custom DNS server
    #[arg(long, value_name = "list")]
    dns_add: Vec<String>,
    /// Remove a custom DNS server
    #[arg(long, value_name = "list")]
    dns_rm: Vec<String>,
    /// Add or update a DNS option
    #[arg(long, value_name = "list")]
    dns_option_add: Vec<String>,
    /// Remove a DNS option
    #[arg(long, value_name = "list")]
    dns_option_rm: Vec<String>,
    /// Add or update a custom DNS search domain
    #[arg(long, value_name = "list")]
    dns_search_add: Vec<String>,
    /// Remove a DNS search domain
    #[arg(long, value_name = "list")]
    dns_search_rm: Vec<String>,
    /// Add Linux capabilities
    #[arg(long, value_name = "list")]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long, value_name = "list")]
    cap_drop: Vec<String>,
    /// Add or update a Sysctl option
    #[arg(long, value_name = "list")]
    sysctl_add: Vec<String>,
    /// Remove a Sysctl option
    #[arg(long, value_name = "list")]
    sysctl_rm: Vec<String>,
    /// Add or update a ulimit option
    #[arg(long, value_name = "ulimit", value_parser = crate::flags::quantity::ulimit)]
    ulimit_add: Vec<Value>,
    /// Remove a ulimit option
    #[arg(long, value_name = "list")]
    ulimit_rm: Vec<String>,
    /// Add a Generic resource
    #[arg(long, value_name = "list")]
    generic_resource_add: Vec<String>,
    /// Remove a Generic resource
    #[arg(long, value_name = "list")]
    generic_resource_rm: Vec<String>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    wait: Wait,
}

/// Takes out the items whose `name` is in `gone`, then puts `added` in, each in the place of its namesake.
fn edit(list: &mut Value, name: impl Fn(&Value) -> String, added: Vec<Value>, gone: &[String]) {
    if added.is_empty() && gone.is_empty() {
        return;
    }
    let mut items = match list.take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    items.retain(|item| !gone.contains(&name(item)));
    for item in added {
        match items.iter_mut().find(|other| name(other) == name(&item)) {
            Some(other) => *other = item,
            None => items.push(item),
        }
    }
    *list = items.into();
}

pub(super) fn edit_map(map: &mut Value, added: &[String], gone: &[String]) {
    if added.is_empty() && gone.is_empty() {
        return;
    }
    let mut fields = match map.take() {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    for key in gone {
        fields.remove(key);
    }
    for text in added {
        let (key, value) = pair(text);
        fields.insert(key, value.into());
    }
    *map = fields.into();
}

fn itself(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn strings(texts: &[String]) -> Vec<Value> {
    texts.iter().map(|text| text.as_str().into()).collect()
}

fn read(texts: &[String], read: impl Fn(&str) -> Result<Value>) -> Result<Vec<Value>> {
    texts.iter().map(|text| read(text)).collect()
}

impl Update {
    /// Changes the spec. `rm_networks` are the ids of the networks to leave.
    fn apply(
        &self,
        spec: &mut Value,
        references: &References,
        rm_networks: &[String],
    ) -> Result<()> {
        edit_map(&mut spec["Labels"], &self.label_add, &self.label_rm);
        add_reach_labels(&mut spec["Labels"], &self.network_add, &self.publish_add)?;
        let task = &mut spec["TaskTemplate"];
        let container = &mut task["ContainerSpec"];
        if let Some(image) = &self.image {
            container["Image"] = image.as_str().into();
        }
        if let Some(args) = &self.args {
            container["Args"] = words(args)?.into();
        }
        edit_map(
            &mut container["Labels"],
            &self.container_label_add,
            &self.container_label_rm,
        );
        edit_map(&mut container["Sysctls"], &self.sysctl_add, &self.sysctl_rm);
        let variable = |value: &Value| pair(&itself(value)).0;
        let env = environment::variables(&self.env_add, &[], &environment::process)?;
        edit(&mut container["Env"], variable, strings(&env), &self.env_rm);
        let target = |value: &Value| text(value, "/Target").to_owned();
        edit(
            &mut container["Mounts"],
            target,
            read(&self.mount_add, mount::long)?,
            &self.mount_rm,
        );
        let secret = |value: &Value| text(value, "/SecretName").to_owned();
        edit(
            &mut container["Secrets"],
            secret,
            read(&self.secret_add, |flag| references.secret(flag))?,
            &self.secret_rm,
        );
        let config = |value: &Value| text(value, "/ConfigName").to_owned();
        edit(
            &mut container["Configs"],
            config,
            read(&self.config_add, |flag| references.config(flag))?,
            &self.config_rm,
        );
        let lines = read(&self.host_add, |flag| host_line(flag).map(Value::from))?;
        let gone: Vec<String> = self
            .host_rm
            .iter()
            .filter_map(|flag| host_line(flag).ok())
            .collect();
        edit(&mut container["Hosts"], itself, lines, &gone);
        edit(
            &mut container["Groups"],
            itself,
            strings(&self.group_add),
            &self.group_rm,
        );
        for (name, added, gone) in [
            ("Nameservers", &self.dns_add, &self.dns_rm),
            ("Options", &self.dns_option_add, &self.dns_option_rm),
            ("Search", &self.dns_search_add, &self.dns_search_rm),
        ] {
            if !(added.is_empty() && gone.is_empty()) {
                edit(
                    at(container, &["DNSConfig", name]),
                    itself,
                    strings(added),
                    gone,
                );
            }
        }
        // What is added is no longer dropped, and the other way round.
        let added = capabilities(&self.cap_add);
        let dropped = capabilities(&self.cap_drop);
        edit(
            &mut container["CapabilityAdd"],
            itself,
            strings(&added),
            &dropped,
        );
        edit(
            &mut container["CapabilityDrop"],
            itself,
            strings(&dropped),
            &added,
        );
        let limit = |value: &Value| text(value, "/Name").to_owned();
        edit(
            &mut container["Ulimits"],
            limit,
            self.ulimit_add.clone(),
            &self.ulimit_rm,
        );
        if !(self.constraint_add.is_empty() && self.constraint_rm.is_empty()) {
            edit(
                at(task, &["Placement", "Constraints"]),
                itself,
                strings(&self.constraint_add),
                &self.constraint_rm,
            );
        }
        if !(self.placement_pref_add.is_empty() && self.placement_pref_rm.is_empty()) {
            let gone = read(&self.placement_pref_rm, preference)?;
            let gone: Vec<String> = gone.iter().map(itself).collect();
            let added = read(&self.placement_pref_add, preference)?;
            edit(
                at(task, &["Placement", "Preferences"]),
                itself,
                added,
                &gone,
            );
        }
        if !(self.generic_resource_add.is_empty() && self.generic_resource_rm.is_empty()) {
            let kind = |value: &Value| match text(value, "/DiscreteResourceSpec/Kind") {
                "" => text(value, "/NamedResourceSpec/Kind").to_owned(),
                kind => kind.to_owned(),
            };
            let added = read(&self.generic_resource_add, generic_resource)?;
            edit(
                at(task, &["Resources", "Reservations", "GenericResources"]),
                kind,
                added,
                &self.generic_resource_rm,
            );
        }
        let joined = read(&self.network_add, |flag| references.attachment(flag))?;
        edit(&mut task["Networks"], target, joined, rm_networks);
        if self.force {
            task["ForceUpdate"] = (number(task, "/ForceUpdate") + 1).into();
        }
        self.apply_ports(spec)?;
        self.settings.apply(spec)
    }

    fn apply_ports(&self, spec: &mut Value) -> Result<()> {
        let mut gone = Vec::new();
        for flag in &self.publish_rm {
            for port in port::service(flag)? {
                gone.push(format!(
                    "{}/{}",
                    number(&port, "/TargetPort"),
                    text(&port, "/Protocol")
                ));
            }
        }
        let mut added = Vec::new();
        for flag in &self.publish_add {
            added.extend(port::service(flag)?);
        }
        if added.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let ports = at(spec, &["EndpointSpec", "Ports"]);
        let target = |port: &Value| {
            format!(
                "{}/{}",
                number(port, "/TargetPort"),
                text(port, "/Protocol")
            )
        };
        edit(ports, target, Vec::new(), &gone);
        // Two published ports may lead to one target.
        let whole = |port: &Value| format!("{}:{}", number(port, "/PublishedPort"), target(port));
        edit(ports, whole, added, &[]);
        Ok(())
    }

    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let found = client
            .get(Target::new("/services/{}", &[&self.service]))
            .await?;
        let mut spec = found["Spec"].clone();
        if self.rollback {
            if self.image.is_some() || self.args.is_some() || self.force {
                bail!("other flags may not be combined with --rollback");
            }
            service::update(&found, spec, true, None, client).await?;
        } else {
            let references = References::resolve(
                &self.network_add,
                &self.secret_add,
                &self.config_add,
                client,
            )
            .await?;
            let mut rm_networks = self.network_rm.clone();
            for name in &self.network_rm {
                let network = client.get(Target::new("/networks/{}", &[name])).await?;
                rm_networks.push(text(&network, "/Id").to_owned());
            }
            self.apply(&mut spec, &references, &rm_networks)?;
            if self.image.is_some()
                && !self.settings.no_resolve_image
                && let Some(warning) = pin_image(&mut spec, client).await?
            {
                output::note(warning);
            }
            let image = text(&spec, "/TaskTemplate/ContainerSpec/Image").to_owned();
            let auth = self
                .settings
                .with_registry_auth
                .then(|| registry_auth(&image))
                .flatten();
            service::update(&found, spec, false, auth, client).await?;
        }
        output::line(&self.service);
        self.wait.done(text(&found, "/ID"), client).await
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        update: Update,
    }

    fn updated(mut spec: Value, line: &str) -> String {
        let line =
            Line::try_parse_from(std::iter::once("update").chain(line.split_whitespace())).unwrap();
        line.update
            .apply(&mut spec, &References::default(), &line.update.network_rm)
            .unwrap();
        crate::json::significant(&spec)
            .unwrap_or_default()
            .to_string()
    }

    #[test]
    fn what_is_not_said_stays() {
        let spec = json!({"Name": "web", "Mode": {"Replicated": {"Replicas": 2}}, "TaskTemplate": {"ContainerSpec": {"Image": "a", "Env": ["A=1", "B=2"]}}});
        assert_eq!(updated(spec.clone(), "web"), spec.to_string());
        assert_eq!(
            updated(
                spec,
                "--image b --env-add A=9 --env-add C=3 --env-rm B --replicas 5 --force --label-add x=y web"
            ),
            r#"{"Labels":{"x":"y"},"Mode":{"Replicated":{"Replicas":5}},"Name":"web","TaskTemplate":{"ContainerSpec":{"Env":["A=9","C=3"],"Image":"b"},"ForceUpdate":1}}"#
        );
    }

    #[test]
    fn ports_and_networks_come_and_go() {
        let port = |published: u16, target: u16| json!({"Protocol": "tcp", "PublishedPort": published, "TargetPort": target, "PublishMode": "ingress"});
        let spec = json!({"EndpointSpec": {"Ports": [port(8080, 80), port(8443, 443)]}, "TaskTemplate": {"Networks": [{"Target": "n1"}, {"Target": "n2"}]}});
        assert_eq!(
            updated(spec, "--publish-rm 80 --publish-add 9090:90 --network-rm n1 --network-add n3 web"),
            json!({"EndpointSpec": {"Ports": [port(8443, 443), port(9090, 90)]}, "TaskTemplate": {"Networks": [{"Target": "n2"}, {"Target": "n3"}]}}).to_string()
        );
    }
}
