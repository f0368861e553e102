//! `--use-api-socket`: a container that may use the engine as its user may.

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::{
    client::{Client, Payload, Target},
    config_file::ConfigFile,
    json::{pairs, text},
};

/// Where a container finds the socket, and the folder of docker's configuration.
const SOCKET: &str = "/var/run/docker.sock";
const FOLDER: &str = "/run/secrets/docker";

/// Puts the socket into the body of a container to be, and says where credentials will be.
pub(super) fn lend(body: &mut Value, client: &Client) -> Result<()> {
    let Some(socket) = client.unix_socket() else {
        bail!(
            "flag --use-api-socket can only be used with unix sockets: docker endpoint {} incompatible",
            client.host()
        );
    };
    let socket = socket.to_str().context("a socket's path that is no text")?;
    let mount = json!({"Type": "bind", "Source": socket, "Target": SOCKET});
    push(&mut body["HostConfig"]["Mounts"], mount);
    push(&mut body["Env"], format!("DOCKER_CONFIG={FOLDER}").into());
    Ok(())
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        other => *other = vec![item].into(),
    }
}

/// Copies the user's credentials into the container that was made.
pub(super) async fn lend_credentials(id: &str, client: &Client) -> Result<()> {
    let known = ConfigFile::load()?.all_credentials();
    let entries: Map<String, Value> = pairs(&known, "")
        .map(|(server, given)| (server.to_owned(), entry(given)))
        .collect();
    if entries.is_empty() {
        return Ok(());
    }
    let content = json!({"auths": entries}).to_string();
    let archive = packed(content.as_bytes()).context("cannot pack the credentials")?;
    let archive = futures_util::stream::once(async move { Ok(Bytes::from(archive)) });
    let target = Target::new("/containers/{}/archive", &[id]).arg("path", "/");
    client
        .send(hyper::Method::PUT, target, Payload::Tar(Box::pin(archive)))
        .await?;
    Ok(())
}

/// Credentials as docker's configuration keeps them.
fn entry(given: &Value) -> Value {
    let identity = text(given, "/identitytoken");
    if !identity.is_empty() {
        return json!({"identitytoken": identity});
    }
    let both = format!("{}:{}", text(given, "/username"), text(given, "/password"));
    json!({"auth": STANDARD.encode(both)})
}

fn packed(content: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    let path = format!("{}/config.json", FOLDER.trim_start_matches('/'));
    archive.append_data(&mut header, path, content)?;
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_of_this_host_can_be_lent() {
        let mut body = json!({"HostConfig": {"Mounts": null}, "Env": ["A=b"]});
        let client = Client::new("unix:///run/shoal/shoal.sock", None).unwrap();
        lend(&mut body, &client).unwrap();
        assert_eq!(body["HostConfig"]["Mounts"][0]["Target"], SOCKET);
        assert_eq!(body["Env"][1], "DOCKER_CONFIG=/run/secrets/docker");
        let far = Client::new("tcp://far:2376", None).unwrap();
        let refused = lend(&mut body, &far).unwrap_err().to_string();
        assert!(refused.ends_with("docker endpoint tcp://far:2376 incompatible"));
    }

    #[test]
    fn credentials_are_written_as_docker_reads_them() {
        let given = json!({"username": "a", "password": "b", "serveraddress": "r"});
        assert_eq!(entry(&given), json!({"auth": "YTpi"}));
        let given = json!({"identitytoken": "t"});
        assert_eq!(entry(&given), given);
    }
}
