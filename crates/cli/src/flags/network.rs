//! Attachments to networks, and references to secrets and configs.

use anyhow::{Result, anyhow, bail};
use serde_json::{Map, Value, json};

use super::{fields, pair};

/// What `--network` asks for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// Name or id of the network.
    pub(crate) target: String,
    /// Further names there.
    pub(crate) aliases: Vec<String>,
    /// Options of the driver.
    pub(crate) driver_options: Map<String, Value>,
    /// Fixed IPv4 address.
    pub(crate) ip: String,
    /// Fixed IPv6 address.
    pub(crate) ip6: String,
    /// Fixed MAC address.
    pub(crate) mac: String,
    /// Containers that are known here by further names, `name[:alias]`.
    pub(crate) links: Vec<String>,
    /// Addresses that hold on the link alone.
    pub(crate) link_local: Vec<String>,
    /// Which of several networks is the way out: the one with the greatest.
    pub(crate) priority: i64,
}

impl Attachment {
    /// Lays the flags over it that belong to the first network alone: address, IPv6 address and MAC address in `own`.
    pub(crate) fn fill(
        &mut self,
        aliases: &[String],
        own: [Option<&str>; 3],
        links: &[String],
        link_local: &[String],
    ) -> Result<()> {
        let conflict = |flag: &str, what: &str| {
            anyhow!("conflicting options: cannot specify both {flag} and per-network {what}")
        };
        let fields = [&mut self.ip, &mut self.ip6, &mut self.mac];
        let names = [
            ("--ip", "IPv4 address"),
            ("--ip6", "IPv6 address"),
            ("--mac-address", "MAC address"),
        ];
        for ((field, value), (flag, what)) in fields.into_iter().zip(own).zip(names) {
            match value {
                Some(_) if !field.is_empty() => return Err(conflict(flag, what)),
                Some(value) => value.clone_into(field),
                None => {}
            }
        }
        for (list, more, flag, what) in [
            (&mut self.aliases, aliases, "--network-alias", "alias"),
            (&mut self.links, links, "--link", "links"),
            (
                &mut self.link_local,
                link_local,
                "--link-local-ip",
                "link-local IP addresses",
            ),
        ] {
            if !list.is_empty() && !more.is_empty() {
                return Err(conflict(flag, what));
            }
            list.extend(more.iter().cloned());
        }
        Ok(())
    }

    /// The settings of the endpoint, as the API takes them.
    pub(crate) fn body(&self) -> Value {
        let mut endpoint = json!({});
        for (field, list) in [("Aliases", &self.aliases), ("Links", &self.links)] {
            if !list.is_empty() {
                endpoint[field] = json!(list);
            }
        }
        if !self.driver_options.is_empty() {
            endpoint["DriverOpts"] = self.driver_options.clone().into();
        }
        if !self.mac.is_empty() {
            endpoint["MacAddress"] = self.mac.as_str().into();
        }
        if self.priority != 0 {
            endpoint["GwPriority"] = self.priority.into();
        }
        if !self.ip.is_empty() || !self.ip6.is_empty() || !self.link_local.is_empty() {
            let mut ipam = json!({"IPv4Address": self.ip, "IPv6Address": self.ip6});
            if !self.link_local.is_empty() {
                ipam["LinkLocalIPs"] = json!(self.link_local);
            }
            endpoint["IPAMConfig"] = ipam;
        }
        endpoint
    }
}

impl Attachment {
    /// What `--network` of a service asks for beyond docker's API: its virtual addresses there, as the label `shoal.ip`
    /// has them.
    pub(crate) fn of_service(&self) -> Result<Vec<String>> {
        let own = [
            ("mac-address", !self.mac.is_empty()),
            ("link-local-ip", !self.link_local.is_empty()),
            ("gw-priority", self.priority != 0),
        ];
        if let Some((key, _)) = own.iter().find(|(_, is_given)| *is_given) {
            bail!(
                "{key} cannot be given to a service's network {}: it is a matter of each container",
                self.target
            );
        }
        let addresses = [&self.ip, &self.ip6].into_iter();
        let given = addresses.filter(|address| !address.is_empty());
        Ok(given
            .map(|address| format!("{}={address}", self.target))
            .collect())
    }
}

/// Reads `--network`: a name, or `name=net,alias=db,driver-opt=k=v`.
pub(crate) fn attachment(text: &str) -> Result<Attachment> {
    let mut out = Attachment::default();
    if !text.contains('=') {
        text.clone_into(&mut out.target);
        return Ok(out);
    }
    for (key, value) in fields(text)? {
        let value = value.ok_or_else(|| anyhow!("invalid field {key}"))?;
        match key.as_str() {
            "name" => out.target = value,
            "alias" => out.aliases.push(value),
            "ip" => out.ip = value,
            "ip6" => out.ip6 = value,
            "mac-address" => out.mac = value,
            "link-local-ip" => out.link_local.push(value),
            "gw-priority" => {
                out.priority = value
                    .parse()
                    .map_err(|_| anyhow!("invalid gw-priority: {value}"))?;
            }
            "driver-opt" => {
                let (name, value) = pair(&value);
                out.driver_options.insert(name, value.into());
            }
            _ => bail!("invalid field key {key}"),
        }
    }
    if out.target.is_empty() {
        bail!("network name/id is not specified");
    }
    Ok(out)
}

/// What `--secret` or `--config` asks for: a name, or `source=s,target=t,uid=0,gid=0,mode=0400`.
///
/// Returns the source and the file of the reference.
pub(crate) fn file_reference(text: &str) -> Result<(String, Value)> {
    if !text.contains('=') && !text.contains(',') {
        let file = json!({"Name": text, "UID": "0", "GID": "0", "Mode": 0o444});
        return Ok((text.to_owned(), file));
    }
    let mut source = None;
    let mut file = json!({"Name": "", "UID": "0", "GID": "0", "Mode": 0o444});
    for (key, value) in fields(text)? {
        let value =
            value.ok_or_else(|| anyhow!("invalid field '{key}' must be a key=value pair"))?;
        match key.as_str() {
            "source" | "src" => source = Some(value),
            "target" => file["Name"] = value.into(),
            "uid" => file["UID"] = value.into(),
            "gid" => file["GID"] = value.into(),
            "mode" => {
                let mode = u32::from_str_radix(&value, 8)
                    .map_err(|_| anyhow!("invalid mode specified: {value}"))?;
                file["Mode"] = mode.into();
            }
            _ => bail!("invalid field in secret request: {key}"),
        }
    }
    let source = source.ok_or_else(|| anyhow!("source is required"))?;
    if file["Name"] == "" {
        file["Name"] = source.as_str().into();
    }
    Ok((source, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_have_names_and_options() {
        assert_eq!(attachment("web").unwrap().target, "web");
        let long = attachment("name=web,alias=a,alias=b,driver-opt=k=v").unwrap();
        assert_eq!((long.target.as_str(), long.aliases.len()), ("web", 2));
        assert_eq!(long.driver_options["k"], "v");
        assert!(attachment("alias=a").is_err() && attachment("name=a,b").is_err());
    }

    #[test]
    fn addresses_of_a_service_are_virtual_ones() {
        let service = |text: &str| attachment(text).unwrap().of_service();
        assert_eq!(service("web").unwrap(), Vec::<String>::new());
        let both = service("name=web,ip=10.0.1.5,ip6=fd00::5").unwrap();
        assert_eq!(both, ["web=10.0.1.5", "web=fd00::5"]);
        let refused = service("name=web,mac-address=02:00:00:00:00:01").unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("mac-address cannot be given")
        );
    }

    #[test]
    fn references_name_a_file() {
        let (source, file) = file_reference("source=key,target=/etc/key,mode=0400").unwrap();
        assert_eq!((source.as_str(), &file["Mode"]), ("key", &json!(0o400)));
        assert_eq!(file_reference("key").unwrap().1["Name"], "key");
        assert!(file_reference("target=a").is_err() && file_reference("source=a,mode=9").is_err());
    }
}
