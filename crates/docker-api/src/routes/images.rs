//! `/images` and `/distribution`. Names of images have slashes, so the verb is the last segment.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use serde_json::{Value, json};
use shoal_api::{
    build::ImportOptions,
    image::{ImageSummary, RegistryAuth},
};

use super::unknown;
use crate::{
    backend::{ApiError, ApiResult},
    call::{Call, Query},
    convert::image,
    reply::{self, Reply},
    server::Api,
    versions,
};

pub(super) async fn answer(api: &Api, call: Call, path: &[&str]) -> ApiResult<Reply> {
    let engine = &api.engine;
    let query = call.query.clone();
    let method = call.method.clone();
    match (method.as_str(), path) {
        ("GET", ["images", "json"]) => list(api, &query, call.minor).await,
        ("GET", ["images", "search"]) => search(api, &call).await,
        ("GET", ["images", "get"]) => save(api, query.all("names"), &query).await,
        ("POST", ["images", "create"]) if query.text("fromImage").is_none() => {
            import(api, call).await
        }
        ("POST", ["images", "create"]) => pull(api, &call).await,
        ("POST", ["images", "load"]) => {
            refuse_foreign(&query)?;
            reply::progress(engine.image_load(call.stream()).await?).await
        }
        ("POST", ["images", "prune"]) => prune(api, &query).await,
        ("GET", ["images", name @ .., "json"]) if !name.is_empty() => {
            let name = name.join("/");
            check_platform(api, &name, query.all("platform")).await?;
            let mut shown = image::inspect(&engine.image_inspect(&name).await?);
            versions::image(call.minor, &mut shown);
            Ok(reply::ok(&shown))
        }
        ("GET", ["images", name @ .., "history"]) if !name.is_empty() => {
            let name = name.join("/");
            check_platform(api, &name, query.all("platform")).await?;
            let rows = engine.image_history(&name).await?;
            Ok(reply::ok(
                &rows.iter().map(image::history).collect::<Vec<_>>(),
            ))
        }
        ("GET", ["images", name @ .., "get"]) if !name.is_empty() => {
            save(api, vec![name.join("/")], &query).await
        }
        ("POST", ["images", name @ .., "tag"]) if !name.is_empty() => {
            let repository = query
                .text("repo")
                .ok_or_else(|| ApiError::invalid("a repository is needed"))?;
            let target = reference(repository, query.text_or_empty("tag"));
            engine.image_tag(&name.join("/"), &target).await?;
            Ok(reply::empty(http::StatusCode::CREATED))
        }
        ("POST", ["images", name @ .., "push"]) if !name.is_empty() => {
            let target = reference(&name.join("/"), query.text_or_empty("tag"));
            check_platform(api, &target, query.all("platform")).await?;
            let messages = engine.image_push(&target, auth(&call)?).await?;
            reply::progress(messages).await
        }
        ("DELETE", ["images", name @ ..]) if !name.is_empty() => {
            let name = name.join("/");
            check_platform(api, &name, query.all("platforms")).await?;
            let steps = engine
                .image_remove(&name, query.flag("force"), query.flag("noprune"))
                .await?;
            Ok(reply::ok(
                &steps.iter().map(image::removed).collect::<Vec<_>>(),
            ))
        }
        ("GET", ["distribution", name @ .., "json"]) if !name.is_empty() => {
            let found = engine
                .distribution_inspect(&name.join("/"), auth(&call)?)
                .await?;
            Ok(reply::ok(&image::distribution(&found)))
        }
        _ => Err(unknown()),
    }
}

fn auth(call: &Call) -> ApiResult<Option<RegistryAuth>> {
    image::read_auth(call.header("X-Registry-Auth"))
}

/// `name:tag`, or `name@sha256:…` where clients put a digest into the tag.
pub(super) fn reference(name: &str, tag: &str) -> String {
    match tag {
        "" => name.to_owned(),
        digest if digest.contains(':') => format!("{name}@{digest}"),
        tag => format!("{name}:{tag}"),
    }
}

async fn pull(api: &Api, call: &Call) -> ApiResult<Reply> {
    let name = call.query.text_or_empty("fromImage");
    let reference = reference(name, call.query.text_or_empty("tag"));
    let platform = image::read_platform(call.query.text("platform"))?;
    let messages = api
        .engine
        .image_pull(&reference, auth(call)?, platform)
        .await?;
    reply::progress(messages).await
}

async fn import(api: &Api, call: Call) -> ApiResult<Reply> {
    let query = &call.query;
    let source = query
        .text("fromSrc")
        .ok_or_else(|| ApiError::invalid("one of fromImage and fromSrc is needed"))?;
    let name = match query.text("repo") {
        Some(name) => reference(name, query.text_or_empty("tag")),
        None => String::new(),
    };
    let options = ImportOptions {
        source: if source == "-" { "" } else { source }.to_owned(),
        name,
        comment: query.text_or_empty("message").to_owned(),
        changes: query.all("changes"),
        platform: image::read_platform(query.text("platform"))?,
    };
    let messages = api.engine.image_import(options, call.stream()).await?;
    reply::progress(messages).await
}

/// Most and usual number of rows, as in docker.
const ROWS_MAX: u32 = 100;
const ROWS: u32 = 25;

async fn search(api: &Api, call: &Call) -> ApiResult<Reply> {
    let query = &call.query;
    let term = query
        .text("term")
        .ok_or_else(|| ApiError::invalid("the parameter term is missing"))?;
    let limit = match query.number("limit")? {
        None | Some(0) => ROWS,
        Some(limit) if limit <= ROWS_MAX => limit,
        Some(limit) => {
            return Err(ApiError::invalid(format!(
                "limit {limit} is outside the range of [1, {ROWS_MAX}]"
            )));
        }
    };
    let filters = query
        .filters()?
        .only(&["is-automated", "is-official", "stars"])?;
    let (official, automated) = (filters.flag("is-official")?, filters.flag("is-automated")?);
    let mut stars = 0;
    for text in filters.values("stars") {
        let number: i64 = text
            .parse()
            .map_err(|_| ApiError::invalid(format!("invalid filter 'stars={text}'")))?;
        stars = stars.max(number);
    }
    let mut found = api.engine.image_search(term, limit, auth(call)?).await?;
    found.retain(|row| {
        official.is_none_or(|wanted| row.official == wanted)
            && automated.is_none_or(|wanted| row.automated == wanted)
            && row.stars >= stars
    });
    Ok(reply::ok(
        &found.iter().map(image::search_result).collect::<Vec<_>>(),
    ))
}

/// Refuses a platform that an image is not of: each is kept for one platform here.
async fn check_platform(api: &Api, name: &str, wanted: Vec<String>) -> ApiResult<()> {
    let Some(text) = wanted.iter().find(|text| !text.is_empty()) else {
        return Ok(());
    };
    let Some(wanted) = image::read_platform(Some(text))? else {
        return Ok(());
    };
    let have = api.engine.image_inspect(name).await?;
    let same = (&have.os, &have.architecture) == (&wanted.os, &wanted.architecture)
        && (wanted.variant.is_empty() || wanted.variant == have.variant);
    if same {
        return Ok(());
    }
    let parts = [&wanted.os, &wanted.architecture, &wanted.variant];
    let parts: Vec<&str> = parts.into_iter().map(String::as_str).collect();
    Err(ApiError::not_found(format!(
        "image with reference {name} was found but does not provide the specified platform ({})",
        parts.join("/").trim_end_matches('/')
    )))
}

/// An archive is loaded whole, so only what everything in it may be can be asked for.
fn refuse_foreign(query: &Query) -> ApiResult<()> {
    let foreign = query.all("platform").into_iter().find(|text| {
        let wanted = image::read_platform(Some(text)).ok().flatten();
        wanted.is_none_or(|wanted| {
            wanted.os != "linux" || wanted.architecture != image::host_architecture()
        })
    });
    match foreign {
        None => Ok(()),
        Some(text) => Err(ApiError::invalid(format!(
            "cannot load platform {text} alone: an archive is loaded for linux/{}",
            image::host_architecture()
        ))),
    }
}

async fn save(api: &Api, names: Vec<String>, query: &Query) -> ApiResult<Reply> {
    if names.is_empty() {
        return Err(ApiError::invalid("no image was named"));
    }
    for name in &names {
        check_platform(api, name, query.all("platform")).await?;
    }
    let archive = api.engine.image_save(names).await?;
    let stop = api.stop.clone().cancelled_owned();
    Ok(reply::stream("application/x-tar", archive.take_until(stop)))
}

async fn prune(api: &Api, query: &Query) -> ApiResult<Reply> {
    let filters = query
        .filters()?
        .only(&["dangling", "until", "label", "label!"])?;
    let mut filter = filters.prune(api.now())?;
    filter.all = !filters.flag("dangling")?.unwrap_or(true);
    let pruned = api.engine.image_prune(filter).await?;
    let removed: Vec<Value> = pruned.removed.iter().map(image::removed).collect();
    Ok(reply::ok(&json!({
        "ImagesDeleted": removed,
        "SpaceReclaimed": pruned.space_reclaimed,
    })))
}

async fn list(api: &Api, query: &Query, minor: u32) -> ApiResult<Reply> {
    let filters =
        query
            .filters()?
            .only(&["before", "dangling", "label", "reference", "since", "until"])?;
    let mut images = api.engine.image_list(query.flag("all")).await?;
    let times: BTreeMap<&str, Option<shoal_api::Timestamp>> = ["before", "since"]
        .into_iter()
        .map(|name| {
            let wanted = filters.values(name);
            let at = wanted.first().map(|wanted| {
                images
                    .iter()
                    .find(|image| is_named(image, wanted))
                    .map(|image| image.created)
                    .ok_or_else(|| ApiError::not_found(format!("No such image: {wanted}")))
            });
            Ok((name, at.transpose()?))
        })
        .collect::<ApiResult<_>>()?;
    let until = filters.prune(api.now())?.until;
    let dangling = filters.flag("dangling")?;
    images.retain(|image| {
        dangling.is_none_or(|wanted| image.repo_tags.is_empty() == wanted)
            && filters.labels("label", &image.labels)
            && times["before"].is_none_or(|at| image.created < at)
            && times["since"].is_none_or(|at| image.created > at)
            && until.is_none_or(|at| image.created < at)
    });
    // A filter by name leaves only the names that match it.
    if !filters.values("reference").is_empty() {
        for image in &mut images {
            image
                .repo_tags
                .retain(|tag| filters.any("reference", |pattern| reference_matches(pattern, tag)));
            image.repo_digests.retain(|digest| {
                let name = digest.split('@').next().unwrap_or_default();
                let untagged = format!("{name}:");
                filters.any("reference", |pattern| {
                    pattern == digest || reference_matches(pattern, &untagged)
                })
            });
        }
        images.retain(|image| !image.repo_tags.is_empty() || !image.repo_digests.is_empty());
    }
    let show = |found: &ImageSummary| {
        let mut shown = image::summary(found);
        versions::image(minor, &mut shown);
        shown
    };
    Ok(reply::ok(&images.iter().map(show).collect::<Vec<_>>()))
}

fn is_named(image: &ImageSummary, wanted: &str) -> bool {
    let tagged = format!("{wanted}:latest");
    image
        .repo_tags
        .iter()
        .any(|tag| tag == wanted || *tag == tagged)
        || image
            .id
            .hex()
            .starts_with(wanted.trim_start_matches("sha256:"))
}

/// `busybox`, `busybox:1*`, `*/app`: a pattern without a tag matches every tag.
fn reference_matches(pattern: &str, tag: &str) -> bool {
    let name = tag.rsplit_once(':').map_or(tag, |(name, _)| name);
    glob(pattern.as_bytes(), tag.as_bytes()) || glob(pattern.as_bytes(), name.as_bytes())
}

/// `*` is any characters but `/`, `?` is one of them (Go's `path.Match` without classes).
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            glob(rest, text)
                || text
                    .split_first()
                    .is_some_and(|(first, text)| *first != b'/' && glob(pattern, text))
        }
        (Some((b'?', rest)), Some((byte, text))) => *byte != b'/' && glob(rest, text),
        (Some((wanted, rest)), Some((byte, text))) => wanted == byte && glob(rest, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_in_the_tag_stays_a_digest() {
        assert_eq!(reference("a/b", "1"), "a/b:1");
        assert_eq!(reference("a/b", "sha256:00"), "a/b@sha256:00");
        assert_eq!(reference("a/b", ""), "a/b");
    }

    #[test]
    fn patterns_match_names_and_tags() {
        assert!(reference_matches("busybox", "busybox:1.36"));
        assert!(reference_matches("busy*:1*", "busybox:1.36"));
        assert!(reference_matches("*/app", "team/app:latest"));
        assert!(!reference_matches("*", "team/app:latest"));
        assert!(!reference_matches("busybox:2", "busybox:1"));
    }
}
