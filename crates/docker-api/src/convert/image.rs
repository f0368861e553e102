//! Images, and what registries say of them.

use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value, json};
use shoal_api::{
    build::SearchResult,
    image::{
        Distribution, ImageHistory, ImageInspect, ImageRemoved, ImageSummary, Platform,
        RegistryAuth,
    },
};

use super::{container_create::set, container_show::health_check, time::instant};
use crate::backend::{ApiError, ApiResult, Progress};

/// Clients write base 64 for URLs, some with padding and some without.
pub(crate) const AUTH_BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One element of `GET /images/json`.
pub(crate) fn summary(image: &ImageSummary) -> Value {
    json!({
        "Id": image.id.to_string(),
        "ParentId": image.parent.as_ref().map_or_else(String::new, ToString::to_string),
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Created": image.created.seconds(),
        "Size": image.size,
        "SharedSize": -1,
        "Labels": if image.labels.is_empty() { Value::Null } else { json!(image.labels) },
        "Containers": -1,
    })
}

/// The answer of `GET /images/{name}/json`.
pub(crate) fn inspect(image: &ImageInspect) -> Value {
    let config = &image.config;
    let mut shown = json!({
        "User": config.user,
        "Env": config.env,
        "Cmd": config.cmd,
        "Entrypoint": config.entrypoint,
        "WorkingDir": config.working_dir,
        "Labels": if config.labels.is_empty() { Value::Null } else { json!(config.labels) },
        "OnBuild": if config.on_build.is_empty() { Value::Null } else { json!(config.on_build) },
        "Volumes": if config.volumes.is_empty() { Value::Null } else { set(&config.volumes) },
    });
    if !config.exposed_ports.is_empty() {
        shown["ExposedPorts"] = set(&config.exposed_ports);
    }
    if let Some(signal) = &config.stop_signal {
        shown["StopSignal"] = json!(signal);
    }
    if let Some(shell) = &config.shell {
        shown["Shell"] = json!(shell);
    }
    if let Some(check) = &config.healthcheck {
        shown["Healthcheck"] = health_check(check);
    }
    let mut answer = json!({
        "Id": image.id.to_string(),
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Parent": image.parent.as_ref().map_or_else(String::new, ToString::to_string),
        "Comment": image.comment,
        "DockerVersion": "",
        "Author": image.author,
        "Config": shown,
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": {"Name": "overlay2", "Data": layer_dirs(&image.layer_dirs)},
        "RootFS": {"Type": "layers", "Layers": image.diff_ids},
        "Metadata": {"LastTagTime": instant(image.last_tagged)},
    });
    if image.created != shoal_api::Timestamp::ZERO {
        answer["Created"] = json!(instant(image.created));
    }
    if !image.variant.is_empty() {
        answer["Variant"] = json!(image.variant);
    }
    answer
}

fn layer_dirs(dirs: &[String]) -> Value {
    let Some((top, lower)) = dirs.split_last() else {
        return Value::Null;
    };
    let lower: Vec<&str> = lower.iter().rev().map(String::as_str).collect();
    json!({"LowerDir": lower.join(":"), "UpperDir": top})
}

/// One row of `GET /images/{name}/history`.
pub(crate) fn history(row: &ImageHistory) -> Value {
    json!({
        "Id": row.id.as_ref().map_or_else(|| "<missing>".to_owned(), ToString::to_string),
        "Created": row.created.seconds(),
        "CreatedBy": row.created_by,
        "Tags": if row.tags.is_empty() { Value::Null } else { json!(row.tags) },
        "Size": row.size,
        "Comment": row.comment,
    })
}

/// One step of a removal.
pub(crate) fn removed(step: &ImageRemoved) -> Value {
    match step {
        ImageRemoved::Untagged(name) => json!({"Untagged": name}),
        ImageRemoved::Deleted(id) => json!({"Deleted": id}),
    }
}

/// One message of a progress stream.
pub(crate) fn progress(message: &Progress) -> Value {
    match message {
        Progress::Line(line) => json!({"stream": line}),
        Progress::Built(id) => json!({"aux": {"ID": id}}),
        Progress::Failed { code, message } => {
            json!({"errorDetail": {"code": code, "message": message}, "error": message})
        }
        Progress::Status(status) => {
            let mut answer = Map::new();
            answer.insert("status".to_owned(), json!(status.status));
            if let Some(id) = &status.id {
                answer.insert("id".to_owned(), json!(id));
            }
            if status.current > 0 || status.total > 0 {
                let mut detail = json!({"current": status.current});
                if status.total > 0 {
                    detail["total"] = json!(status.total);
                }
                answer.insert("progressDetail".to_owned(), detail);
                answer.insert(
                    "progress".to_owned(),
                    json!(bar(status.current, status.total)),
                );
            } else if status.id.is_some() {
                answer.insert("progressDetail".to_owned(), json!({}));
            }
            Value::Object(answer)
        }
    }
}

/// A progress bar for clients that do not draw their own (moby `pkg/jsonmessage`).
fn bar(current: u64, total: u64) -> String {
    const WIDTH: u64 = 50;
    if total == 0 || current > total {
        return human_size(current);
    }
    let done = current.saturating_mul(WIDTH) / total;
    let done = usize::try_from(done).unwrap_or(0);
    let mut bar = "=".repeat(done);
    if done < 50 {
        bar.push('>');
        bar.push_str(&" ".repeat(49 - done));
    }
    format!("[{bar}]  {}/{}", human_size(current), human_size(total))
}

/// A size with four digits, as `github.com/docker/go-units` `HumanSize` prints it.
fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    #[allow(clippy::cast_precision_loss)] // four digits are shown
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1_000.0 && unit + 1 < UNITS.len() {
        size /= 1_000.0;
        unit += 1;
    }
    let digits = match size {
        s if s >= 100.0 => 1,
        s if s >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{size:.digits$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    let text = if text.is_empty() { "0" } else { text };
    format!("{text}{}", UNITS[unit])
}

/// An error in a progress stream, after the status line has gone.
pub(crate) fn progress_error(message: &str) -> Value {
    json!({"errorDetail": {"message": message}, "error": message})
}

/// Reads `X-Registry-Auth`; absent and empty are no credentials.
pub(crate) fn read_auth(header: Option<&str>) -> ApiResult<Option<RegistryAuth>> {
    let Some(header) = header.filter(|header| !header.is_empty()) else {
        return Ok(None);
    };
    let invalid = |why: &dyn std::fmt::Display| {
        ApiError::invalid(format!("invalid X-Registry-Auth header: {why}"))
    };
    // Some clients use the other alphabet.
    let text: String = header
        .chars()
        .map(|c| match c {
            '+' => '-',
            '/' => '_',
            c => c,
        })
        .collect();
    let json = AUTH_BASE64.decode(text).map_err(|error| invalid(&error))?;
    let auth: RegistryAuth = serde_json::from_slice(&json).map_err(|error| invalid(&error))?;
    let empty = auth.username.is_empty()
        && auth.password.is_empty()
        && auth.identity_token.is_empty()
        && auth.registry_token.is_empty();
    Ok((!empty).then_some(auth))
}

/// One repository of `GET /images/search`.
pub(crate) fn search_result(found: &SearchResult) -> Value {
    json!({
        "name": found.name,
        "description": found.description,
        "star_count": found.stars,
        "is_official": found.official,
        "is_automated": found.automated,
    })
}

/// The answer of `GET /distribution/{name}/json`.
pub(crate) fn distribution(answer: &Distribution) -> Value {
    json!({
        "Descriptor": {
            "mediaType": answer.media_type,
            "digest": answer.digest,
            "size": answer.size,
        },
        "Platforms": answer.platforms.iter().map(platform).collect::<Vec<_>>(),
    })
}

fn platform(platform: &Platform) -> Value {
    let mut answer = json!({"architecture": platform.architecture, "os": platform.os});
    if !platform.variant.is_empty() {
        answer["variant"] = json!(platform.variant);
    }
    answer
}

/// Go's name of this host's processor.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads `os[/arch[/variant]]`, or the JSON form of newer clients; `None` if it is empty.
pub(crate) fn read_platform(text: Option<&str>) -> ApiResult<Option<Platform>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let invalid = || ApiError::invalid(format!("invalid platform {text:?}"));
    if text.starts_with('{') {
        return serde_json::from_str(text).map(Some).map_err(|_| invalid());
    }
    let parts: Vec<&str> = text.split('/').collect();
    let (os, architecture, variant) = match parts[..] {
        [os, architecture] => (os, architecture, ""),
        [os, architecture, variant] => (os, architecture, variant),
        _ => return Err(invalid()),
    };
    if os.is_empty() || architecture.is_empty() {
        return Err(invalid());
    }
    Ok(Some(Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_in_all_spellings() {
        let json = br#"{"username":"u?>","password":"p~~"}"#;
        for text in [
            base64::engine::general_purpose::URL_SAFE.encode(json),
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json),
            base64::engine::general_purpose::STANDARD.encode(json),
        ] {
            let auth = read_auth(Some(&text)).unwrap().unwrap();
            assert_eq!(
                (auth.username.as_str(), auth.password.as_str()),
                ("u?>", "p~~")
            );
        }
        assert_eq!(read_auth(Some("e30=")), Ok(None));
        assert!(read_auth(Some("not base 64")).is_err());
    }

    #[test]
    fn sizes_and_bars_read_as_dockers() {
        assert_eq!(human_size(0), "0B");
        assert_eq!(human_size(1_234_567), "1.235MB");
        assert_eq!(
            bar(5, 10),
            format!("[{}>{}]  5B/10B", "=".repeat(25), " ".repeat(24))
        );
    }
}
