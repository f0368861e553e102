//! Which tags a repository has.

use reqwest::{Response, header::LINK};
use serde::Deserialize;

use super::Registry;
use crate::io::images::ImageError;

/// Pages of a list; more than any repository has.
const PAGES_MAX: usize = 1_000;

/// One page of a list of tags.
#[derive(Deserialize)]
struct Page {
    /// Some registries write null for none.
    tags: Option<Vec<String>>,
}

impl Registry {
    /// All tags of the repository, as the registry orders them.
    pub(in crate::io::images) async fn tags(&self) -> Result<Vec<String>, ImageError> {
        let mut url = self.url("tags/list");
        let mut tags = Vec::new();
        for _ in 0..PAGES_MAX {
            let response = self.send("Get", &url, || self.http.get(&url)).await?;
            let next = next_page(&response);
            let bytes = self.body(&url, response).await?;
            let page: Page = serde_json::from_slice(&bytes).map_err(|error| {
                ImageError::Archive(format!("the list of tags at {url} makes no sense: {error}"))
            })?;
            tags.extend(page.tags.into_iter().flatten());
            match next {
                Some(path) if path.starts_with('/') => url = format!("{}{path}", self.base),
                _ => break,
            }
        }
        Ok(tags)
    }
}

/// Where the list goes on: `</v2/app/tags/list?last=9>; rel="next"`.
fn next_page(response: &Response) -> Option<String> {
    let link = response.headers().get(LINK)?.to_str().ok()?;
    let (target, rest) = link.strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| target.to_owned())
}
