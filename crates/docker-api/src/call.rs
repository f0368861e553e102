//! A request, taken apart.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{
    Request,
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};

use crate::{
    backend::{ApiError, ApiResult, ByteStream},
    convert::time::parse_instant,
    filters::Filters,
};

/// Minor number of the API version served without a version in the path, and the newest.
const MINOR_MAX: u32 = 51;
/// Minor number of the oldest version.
const MINOR_MIN: u32 = 24;

/// Bytes of a JSON body at most. The largest honest one is a config: 1,024,000 bytes, a third more in base 64.
const JSON_BYTES_MAX: usize = 4 << 20;

/// Bytes of a body that nobody wants which are still read, so that its sender lives to see the answer: docker's client
/// sees it at once and goes, others write to the end before they look.
const DISCARDED_BYTES_MAX: usize = 64 << 20;

/// A request, taken apart.
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Segments of the path after the version, decoded.
    pub(crate) path: Vec<String>,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    /// Minor number of the API version that the client speaks.
    pub(crate) minor: u32,
    /// There if the client asks to take the connection over.
    pub(crate) upgrade: Option<OnUpgrade>,
    body: Body,
}

enum Body {
    Read(Bytes),
    Archive(Archive),
}

/// A body that is read as it comes. What is left of it when nobody reads on is discarded while the answer goes out, up to
/// a limit: a connection that closes on a client which still writes takes the answer with it.
struct Archive {
    /// Until its end, or its failure.
    body: Option<Incoming>,
    runtime: tokio::runtime::Handle,
}

impl Archive {
    fn new(body: Incoming) -> Self {
        Self {
            body: Some(body),
            runtime: tokio::runtime::Handle::current(),
        }
    }
}

impl Stream for Archive {
    type Item = ApiResult<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ApiResult<Bytes>>> {
        while let Some(body) = &mut self.body {
            match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // Trailers say nothing here.
                    if let Ok(bytes) = frame.into_data() {
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
                Some(Err(error)) => {
                    self.body = None;
                    return Poll::Ready(Some(Err(ended_early(&error))));
                }
                None => self.body = None,
            }
        }
        Poll::Ready(None)
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            self.runtime.spawn(discard(body));
        }
    }
}

async fn discard(mut body: Incoming) {
    let mut size = 0;
    while let Some(Ok(frame)) = body.frame().await {
        size += frame.data_ref().map_or(0, Bytes::len);
        if size > DISCARDED_BYTES_MAX {
            return;
        }
    }
}

impl Call {
    /// Takes a request apart and reads its body, unless that is an archive.
    ///
    /// The body is read even if the answer will be an error: a client that is still writing when the connection closes
    /// sees a broken pipe instead of the answer.
    pub(crate) async fn new(mut request: Request<Incoming>) -> ApiResult<Self> {
        let asks = request
            .headers()
            .get(header::CONNECTION)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.to_ascii_lowercase().contains("upgrade"))
            && request.headers().contains_key(header::UPGRADE);
        let upgrade = asks.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let mut path: Vec<String> = parts
            .uri
            .path()
            .split('/')
            .filter(|segment| !segment.is_empty())
            .map(|segment| decode(segment, false))
            .collect();
        let minor = match path.first().and_then(|first| api_version(first)) {
            None => Ok(MINOR_MAX),
            Some(minor) => {
                path.remove(0);
                minor
            }
        };
        let segments: Vec<&str> = path.iter().map(String::as_str).collect();
        let archive = matches!(
            (&parts.method, segments.as_slice()),
            (
                &Method::POST,
                ["images", "load" | "create"] | ["build"] | ["shoal", "cluster", "restore"]
            ) | (&Method::PUT, ["containers", _, "archive"])
        );
        let body = if archive {
            Body::Archive(Archive::new(body))
        } else {
            Body::Read(read(body).await?)
        };
        let minor = minor?;
        if let Body::Read(bytes) = &body
            && !bytes.is_empty()
        {
            check_content_type(&parts.headers)?;
        }
        Ok(Self {
            method: parts.method,
            path,
            query: Query::parse(parts.uri.query().unwrap_or_default()),
            headers: parts.headers,
            minor,
            upgrade,
            body,
        })
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The whole body, for JSON.
    pub(crate) fn bytes(&self) -> Bytes {
        match &self.body {
            Body::Read(bytes) => bytes.clone(),
            Body::Archive(_) => Bytes::new(),
        }
    }

    /// The body as it comes, for archives.
    pub(crate) fn stream(self) -> ByteStream {
        match self.body {
            Body::Read(bytes) => stream::iter([Ok(bytes)]).boxed(),
            Body::Archive(archive) => archive.boxed(),
        }
    }
}

/// Refuses a document that says it is something else, in docker's words (moby `httputils.CheckForJSON`): a form that a
/// browser was made to send is none. One that does not say is taken.
fn check_content_type(headers: &HeaderMap) -> ApiResult<()> {
    let Some(said) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let said = String::from_utf8_lossy(said.as_bytes());
    let kind = said.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "unsupported Content-Type header ({kind}): must be 'application/json'"
    )))
}

fn ended_early(error: &hyper::Error) -> ApiError {
    ApiError::invalid(format!("request body ended early: {error}"))
}

/// Reads a body into memory, up to the limit.
async fn read(mut body: Incoming) -> ApiResult<Bytes> {
    let (mut bytes, mut size) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ended_early(&error))?;
        let Some(chunk) = frame.data_ref() else {
            continue;
        };
        size += chunk.len();
        if size <= JSON_BYTES_MAX {
            bytes.extend_from_slice(chunk);
        } else if size > DISCARDED_BYTES_MAX {
            break;
        }
    }
    if size > JSON_BYTES_MAX {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("request body is larger than {JSON_BYTES_MAX} bytes"),
        ));
    }
    Ok(bytes.freeze())
}

/// Reads `v1.NN`; `None` if the segment is no version.
fn api_version(segment: &str) -> Option<ApiResult<u32>> {
    let digits = segment.strip_prefix('v')?;
    let (major, minor) = digits.split_once('.')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    if major != 1 || minor > MINOR_MAX {
        return Some(Err(ApiError::invalid(format!(
            "client version {digits} is too new. Maximum supported API version is 1.{MINOR_MAX}"
        ))));
    }
    if minor < MINOR_MIN {
        return Some(Err(ApiError::invalid(format!(
            "client version {digits} is too old. Minimum supported API version is 1.{MINOR_MIN}, please upgrade your \
             client to a newer version"
        ))));
    }
    Some(Ok(minor))
}

/// The parameters after the question mark, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name, true), decode(value, true))
                })
                .collect(),
        )
    }

    /// The first value of a name; `None` if it is empty.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// The first value of a name, empty if there is none.
    pub(crate) fn text_or_empty(&self, name: &str) -> &str {
        self.text(name).unwrap_or_default()
    }

    /// All values of a name.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// A truth value as docker reads it (moby `httputils.BoolValue`).
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    /// A truth value with a default.
    pub(crate) fn flag_or(&self, name: &str, default: bool) -> bool {
        match self.text(name) {
            None => default,
            Some(text) => !matches!(
                text.to_ascii_lowercase().as_str(),
                "0" | "no" | "false" | "none"
            ),
        }
    }

    /// A number; `None` if there is none.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> ApiResult<Option<T>> {
        self.text(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| ApiError::invalid(format!("invalid value for {name}: {text:?}")))
            })
            .transpose()
    }

    /// An instant; `None` if there is none or it is 0, which clients send for "none".
    pub(crate) fn instant(&self, name: &str) -> ApiResult<Option<shoal_api::Timestamp>> {
        match self.text(name) {
            None | Some("0") => Ok(None),
            Some(text) => parse_instant(text)
                .map(Some)
                .ok_or_else(|| ApiError::invalid(format!("invalid value for {name}: {text:?}"))),
        }
    }

    /// The version of the object that an update read.
    pub(crate) fn object_version(&self) -> ApiResult<u64> {
        let text = self.text_or_empty("version");
        text.parse()
            .map_err(|_| ApiError::invalid(format!("invalid swarm object version '{text}'")))
    }

    /// The filters.
    pub(crate) fn filters(&self) -> ApiResult<Filters> {
        Filters::parse(self.text_or_empty("filters"))
    }
}

/// Decodes `%41`, and `+` where that is a space; what is no escape stays as it is.
fn decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (escaped, byte) {
            (Some(byte), _) => {
                out.push(byte);
                at += 2;
            }
            (None, b'+') if plus_is_space => out.push(b' '),
            (None, byte) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded() {
        assert_eq!(decode("a%2Fb%zz%4", false), "a/b%zz%4");
        assert_eq!(decode("a+b%2B", true), "a b+");
        let query = Query::parse("all=1&x=&names=a&names=b%3A1&t=-1&off=False");
        assert!(query.flag("all") && !query.flag("x") && !query.flag_or("off", true));
        assert_eq!(query.all("names"), ["a", "b:1"]);
        assert_eq!(query.number::<i64>("t").unwrap(), Some(-1));
        assert!(query.number::<u64>("t").is_err());
    }

    #[test]
    fn a_document_that_says_it_is_something_else_is_refused() {
        let check = |kind: &'static str| {
            let value = http::HeaderValue::from_static(kind);
            check_content_type(&HeaderMap::from_iter([(header::CONTENT_TYPE, value)]))
        };
        assert!(check("application/json; charset=utf-8").is_ok());
        assert!(check_content_type(&HeaderMap::new()).is_ok());
        assert_eq!(
            check("application/x-www-form-urlencoded")
                .unwrap_err()
                .message,
            "unsupported Content-Type header (application/x-www-form-urlencoded): must be 'application/json'"
        );
    }

    #[test]
    fn versions_out_of_range_are_refused_in_dockers_words() {
        assert_eq!(api_version("v1.41").unwrap().unwrap(), 41);
        assert!(api_version("version").is_none() && api_version("v1").is_none());
        assert_eq!(
            api_version("v1.99").unwrap().unwrap_err().message,
            "client version 1.99 is too new. Maximum supported API version is 1.51"
        );
        assert!(
            api_version("v1.12")
                .unwrap()
                .unwrap_err()
                .message
                .starts_with("client version 1.12 is too old.")
        );
    }
}
