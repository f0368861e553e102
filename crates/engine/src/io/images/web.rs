//! What is fetched from the web besides images: files of `ADD` and `import`, and the answers of searches.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use reqwest::{
    Client,
    header::{AUTHORIZATION, LAST_MODIFIED},
};
use serde::Deserialize;
use shoal_api::{build::SearchResult, image::RegistryAuth};
use tokio::io::AsyncWriteExt;

use super::{
    ImageError, ImageStore,
    registry::{CONNECT_TIMEOUT, SILENCE_TIMEOUT, basic, is_loopback, unreachable},
};

/// Bytes of an answer to a search.
const ANSWER_BYTES_MAX: usize = 8 << 20;

fn client(is_loopback: bool) -> Result<Client, reqwest::Error> {
    let client = Client::builder()
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE_TIMEOUT);
    if is_loopback {
        client.no_proxy().build()
    } else {
        client.build()
    }
}

fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// Downloads an address of the web into a file. Returns when the content changed last, if the server says.
pub(in crate::io) async fn download(
    url: &str,
    into: &Path,
) -> Result<Option<SystemTime>, ImageError> {
    let fail = |error: &reqwest::Error| unreachable("Get", url, error);
    let client = client(is_loopback(host_of(url))).map_err(|error| fail(&error))?;
    let mut response = client.get(url).send().await.map_err(|error| fail(&error))?;
    if !response.status().is_success() {
        return Err(ImageError::Registry {
            method: "Get".to_owned(),
            url: url.to_owned(),
            reason: format!("got status code {}", response.status().as_u16()),
        });
    }
    let dated = response.headers().get(LAST_MODIFIED);
    let dated = dated.and_then(|value| http_date(value.to_str().ok()?));
    let mut file = tokio::fs::File::create(into)
        .await
        .map_err(ImageError::io("create", into))?;
    while let Some(chunk) = response.chunk().await.map_err(|error| fail(&error))? {
        file.write_all(&chunk)
            .await
            .map_err(ImageError::io("write", into))?;
    }
    file.flush().await.map_err(ImageError::io("write", into))?;
    Ok(dated)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7).
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let words: Vec<&str> = text.split(' ').collect();
    let [_, day, month, year, time, "GMT"] = words.as_slice() else {
        return None;
    };
    let month = MONTHS.iter().position(|name| name == month)? + 1;
    let text = format!("{year}-{month:02}-{day}T{time}Z");
    let seconds = shoal_api::Timestamp::parse_rfc3339(&text)?.seconds();
    let since = Duration::from_secs(u64::try_from(seconds).ok()?);
    Some(SystemTime::UNIX_EPOCH + since)
}

/// The answer of a registry's search (API version 1, which is the only one that has it).
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    results: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    star_count: i64,
    #[serde(default)]
    is_official: bool,
    #[serde(default)]
    is_automated: bool,
}

impl ImageStore {
    /// `docker search`: repositories of a registry that fit a term; `host/term` asks another one than docker's.
    pub async fn search(
        &self,
        term: &str,
        limit: u32,
        auth: Option<&RegistryAuth>,
    ) -> Result<Vec<SearchResult>, ImageError> {
        if term.contains("://") {
            return Err(ImageError::Archive(format!(
                "invalid repository name ({term}), cannot specify a scheme"
            )));
        }
        let (host, words) = match term.split_once('/') {
            Some((host, words)) if host.contains(['.', ':']) || host == "localhost" => {
                (host, words)
            }
            _ => ("index.docker.io", term),
        };
        let scheme = match is_loopback(host) || self.registries().is_insecure(host) {
            true => "http",
            false => "https",
        };
        let url = format!("{scheme}://{host}/v1/search");
        let shown = format!("{url}?q={words}&n={limit}");
        let fail = |error: &reqwest::Error| unreachable("Get", &shown, error);
        let client = client(is_loopback(host)).map_err(|error| fail(&error))?;
        let mut request = client
            .get(&url)
            .query(&[("q", words), ("n", &limit.to_string())]);
        if let Some(auth) = auth.filter(|auth| !auth.username.is_empty()) {
            request = request.header(AUTHORIZATION, basic(auth));
        }
        let wrong = |reason: String| ImageError::Registry {
            method: "Get".to_owned(),
            url: shown.clone(),
            reason,
        };
        let mut response = request.send().await.map_err(|error| fail(&error))?;
        if !response.status().is_success() {
            return Err(wrong(format!(
                "unexpected status code {}",
                response.status().as_u16()
            )));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| fail(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(wrong("the answer is too long".to_owned()));
            }
        }
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| wrong("the registry has no search".to_owned()))?;
        let rows = answer.results.into_iter().map(|row| SearchResult {
            name: row.name,
            description: row.description,
            stars: row.star_count,
            official: row.is_official,
            automated: row.is_automated,
        });
        Ok(rows
            .take(usize::try_from(limit).unwrap_or(usize::MAX))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_servers_are_read() {
        let at = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(
            at,
            SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)
        );
        assert!(http_date("yesterday").is_none());
    }
}
