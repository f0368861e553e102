//! What the managers would refuse of a stack, looked for before anything is made.

use anyhow::{Result, anyhow, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use shoal_api::{
    spec::{Labels, labels::IP},
    template::task::{DRIVER, File, check_files},
};

use super::deploy::{Ids, Known, NODE_NETWORKS, named, resolve};
use crate::{
    client::{Client, Target, is_not_found},
    compose::{Data, Network, Stack},
    json::{is, items, pairs, text, texts},
};

/// A version that no object ever has.
const NEVER: i64 = 0;

/// Refuses secrets that are there with other data. Only managers can compare: they are asked for an update of a version
/// that never was, which changes nothing and is refused for the data first.
pub(super) async fn secrets(wanted: &[Data], known: &Known, client: &Client) -> Result<()> {
    for wanted in wanted {
        let found = named(known.data("secret"), &wanted.name);
        let (Some(found), Some(spec)) = (found, &wanted.create) else {
            continue;
        };
        let target = Target::new("/secrets/{}/update", &[text(found, "/ID")]);
        let asked = client
            .post(target.arg("version", NEVER), spec.clone())
            .await;
        if let Err(error) = asked
            && format!("{error:#}").contains("only updates to Labels are allowed")
        {
            return Err(changed_data("secret", &wanted.name));
        }
    }
    Ok(())
}

/// The complaint about other data under a name that is taken.
pub(super) fn changed_data(kind: &str, name: &str) -> anyhow::Error {
    anyhow!(
        "failed to update {kind} {name}: only updates to Labels are allowed; give changed data another name, for instance \
         by `name:`"
    )
}

/// Refuses templates of secrets and configs that no task of their service could fill in, also of those that are yet to be
/// made.
pub(super) fn templates(stack: &Stack, known: &Known) -> Result<()> {
    let mut datas = Vec::new();
    for (kind, list) in [("secret", &stack.secrets), ("config", &stack.configs)] {
        for data in list {
            let found = named(known.data(kind), &data.name);
            let spec = data.create.as_ref().or(found.map(|found| &found["Spec"]));
            let bytes = spec.and_then(|spec| STANDARD.decode(text(spec, "/Data")).ok());
            // What a secret that is there holds only managers know.
            let bytes = bytes.filter(|bytes| !bytes.is_empty());
            let template = spec.is_some_and(|spec| text(spec, "/Templating/Name") == DRIVER);
            datas.push((kind, &data.name, bytes, template));
        }
    }
    for service in &stack.services {
        let container = &service["TaskTemplate"]["ContainerSpec"];
        let mut files = Vec::new();
        for (kind, list, named) in [
            ("secret", "/Secrets", "/SecretName"),
            ("config", "/Configs", "/ConfigName"),
        ] {
            for used in items(container, list) {
                let name = text(used, named);
                let mut datas = datas.iter();
                let data = datas.find(|(of, known, ..)| *of == kind && *known == name);
                files.push(File {
                    is_secret: kind == "secret",
                    name,
                    target: text(used, "/File/Name"),
                    data: data.and_then(|(_, _, bytes, _)| bytes.as_deref()),
                    is_template: data.is_some_and(|(_, _, _, template)| *template),
                });
            }
        }
        let labels = pairs(service, "/Labels");
        let labels: Labels = labels
            .filter_map(|(key, value)| Some((key.to_owned(), value.as_str()?.to_owned())))
            .collect();
        let name = text(service, "/Name");
        check_files(&files, &texts(container, "/Env"), name, &labels)
            .map_err(|error| anyhow!("service {name} is refused: {error}"))?;
    }
    Ok(())
}

/// Says which networks of the stack are there with another definition: they stay as they are.
pub(super) fn networks(wanted: &[Network], known: &Known) -> Vec<String> {
    let mut warnings = Vec::new();
    for network in wanted {
        let (Some(create), Some(found)) = (&network.create, known.network(&network.name)) else {
            continue;
        };
        let differences = network_differences(found, create);
        if !differences.is_empty() {
            warnings.push(format!(
                "network {} is there with another definition and stays as it is ({}): remove it to have it made anew",
                network.name,
                differences.join(", ")
            ));
        }
    }
    warnings
}

fn network_differences(found: &Value, wanted: &Value) -> Vec<String> {
    /// What the daemon writes beside the options of a network's maker.
    const GIVEN: &str = "com.docker.network.driver.overlay.vxlanid_list";
    let mut differences = Vec::new();
    let mut compare = |name: &str, old: &str, new: &str| {
        if old != new {
            let shown = |text: &str| if text.is_empty() { "(none)" } else { text }.to_owned();
            differences.push(format!("{name}: {} → {}", shown(old), shown(new)));
        }
    };
    compare("Driver", text(found, "/Driver"), text(wanted, "/Driver"));
    for name in ["Internal", "Attachable", "EnableIPv6"] {
        let at = format!("/{name}");
        let said = |value: &Value| is(value, &at).to_string();
        compare(name, &said(found), &said(wanted));
    }
    for map in ["Options", "Labels"] {
        let at = format!("/{map}");
        let keys = |value| pairs(value, &at).map(|(key, _)| key.to_owned());
        let mut all: Vec<String> = keys(found).chain(keys(wanted)).collect();
        all.sort();
        all.dedup();
        for key in all.iter().filter(|key| *key != GIVEN) {
            let value = |of: &Value| of[map][key].as_str().unwrap_or_default().to_owned();
            compare(&format!("{map}.{key}"), &value(found), &value(wanted));
        }
    }
    let pools = items(found, "/IPAM/Config");
    for (number, pool) in items(wanted, "/IPAM/Config").iter().enumerate() {
        for (key, value) in pairs(pool, "") {
            let old = pools.get(number).and_then(|pool| pool[key].as_str());
            if let Some(value) = value.as_str() {
                compare(&format!("IPAM.{key}"), old.unwrap_or_default(), value);
            }
        }
    }
    differences
}

/// Has the managers look at the services as they would be, and refuses what they would. Returns where the tasks of new ones
/// would go.
///
/// What the stack is yet to make is left out of the services: that it will be there has been checked with the files. A
/// daemon that cannot be asked says no when its turn comes.
pub(super) async fn services(
    services: &[Value],
    ids: &Ids,
    known: &Known,
    client: &Client,
) -> Result<Vec<Value>> {
    let mut asked = Vec::new();
    for spec in services {
        let mut spec = spec.clone();
        resolve(&mut spec, ids)?;
        leave_out(&mut spec, known);
        asked.push(spec);
    }
    let target = Target::new("/shoal/services/check", &[]);
    let said = match client.post(target, Value::from(asked)).await {
        Err(error) if is_not_found(&error) => return Ok(Vec::new()),
        answer => answer?,
    };
    let mut errors = Vec::new();
    for one in items(&said, "/Refused") {
        errors.push(format!(
            "service {} is refused: {}",
            text(one, "/Name"),
            text(one, "/Message")
        ));
    }
    if errors.is_empty() {
        return Ok(items(&said, "/Foreseen").to_vec());
    }
    bail!("{}", errors.join("\n"))
}

/// Takes out what there is not yet.
fn leave_out(spec: &mut Value, known: &Known) {
    let is_known = |name: &str| {
        let mut networks = known.networks.iter();
        NODE_NETWORKS.contains(&name)
            || networks
                .any(|network| [text(network, "/Id"), text(network, "/Name")].contains(&name))
    };
    // Addresses go with their networks.
    if let Some(label) = spec["Labels"].as_object_mut()
        && let Some(addresses) = label.get(IP).and_then(Value::as_str)
    {
        let of_known = |address: &&str| is_known(crate::flags::pair(address).0.trim());
        let kept: Vec<&str> = addresses.split(',').filter(of_known).collect();
        let kept = kept.join(",");
        label.insert(IP.to_owned(), kept.into());
    }
    let Some(task) = spec["TaskTemplate"].as_object_mut() else {
        return;
    };
    keep(task.get_mut("Networks"), |attachment| {
        is_known(text(attachment, "/Target"))
    });
    let Some(container) = task.get_mut("ContainerSpec") else {
        return;
    };
    let lists = [
        ("Secrets", "secret", "/SecretID"),
        ("Configs", "config", "/ConfigID"),
    ];
    let found = |kind: &str, id: &str| {
        let mut known = known.data(kind).iter();
        known.find(|object| text(object, "/ID") == id)
    };
    let is_missing = lists.iter().any(|(list, kind, id)| {
        let mut all = container[*list].as_array().into_iter().flatten();
        all.any(|reference| found(kind, text(reference, id)).is_none())
    });
    for (list, kind, id) in lists {
        // A template may name what is left out.
        keep(container.get_mut(list), |reference| {
            found(kind, text(reference, id)).is_some_and(|object| {
                !is_missing || text(object, "/Spec/Templating/Name").is_empty()
            })
        });
    }
}

fn keep(list: Option<&mut Value>, is_known: impl Fn(&Value) -> bool) {
    if let Some(list) = list.and_then(Value::as_array_mut) {
        list.retain(is_known);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_network_what_the_file_says_is_compared() {
        let found = json!({
            "Name": "n", "Driver": "overlay", "Attachable": false, "Internal": false, "EnableIPv6": false,
            "IPAM": {"Driver": "default", "Config": [{"Subnet": "10.0.1.0/24", "Gateway": "10.0.1.1"}]},
            "Options": {"com.docker.network.driver.overlay.vxlanid_list": "4097"}, "Labels": {"a": "b"},
        });
        let same =
            json!({"Name": "n", "Driver": "overlay", "Attachable": false, "Labels": {"a": "b"}});
        assert_eq!(network_differences(&found, &same), [""; 0]);
        let other = json!({
            "Name": "n", "Driver": "overlay", "Attachable": true, "Options": {"encrypted": "true"},
            "IPAM": {"Config": [{"Subnet": "10.0.2.0/24"}]}, "Labels": {"a": "c"},
        });
        assert_eq!(
            network_differences(&found, &other),
            [
                "Attachable: false → true",
                "Options.encrypted: (none) → true",
                "Labels.a: b → c",
                "IPAM.Subnet: 10.0.1.0/24 → 10.0.2.0/24",
            ]
        );
    }
}
