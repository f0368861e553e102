//! A client for one repository of one registry (OCI distribution specification).

mod tags;

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use reqwest::{
    Client, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, RANGE, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use shoal_api::image::RegistryAuth;

use super::{
    ImageError, Registries,
    certificates::{certificates, host_authorities},
    store::DOCUMENT_BYTES_MAX,
};
use crate::core::images::{Challenge, Digest, MediaType, Reference};

/// Bounds on a peer that does not answer; a transfer may take any time as long as bytes come.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// An error's body beyond this explains nothing more.
const COMPLAINT_BYTES_MAX: usize = 64 << 10;

/// Which rights a token is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Pull,
    PullPush,
    /// Nothing but being known.
    Login,
}

/// A registry, found and spoken to.
pub(super) struct Registry {
    http: Client,
    /// `https://host:port`
    base: String,
    /// What it is about; its repository is in every request.
    reference: Reference,
    access: Access,
    auth: Option<RegistryAuth>,
    /// The `Authorization` header that worked last.
    authorization: Mutex<Option<String>>,
}

/// A manifest or index as it came.
#[derive(Clone)]
pub(super) struct Fetched {
    pub(super) content: Vec<u8>,
    pub(super) digest: Digest,
}

#[derive(Deserialize)]
struct Complaints {
    errors: Vec<Complaint>,
}

#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Registry {
    /// Finds out how the registry of `reference` is spoken to.
    ///
    /// Always by https with a certificate that the public authorities vouch for, or those that the host trusts for this
    /// registry; except for registries on loopback addresses and those that the settings list as insecure: these may
    /// have any certificate, or speak plain http.
    pub(super) async fn connect(
        reference: &Reference,
        access: Access,
        auth: Option<&RegistryAuth>,
        settings: &Registries,
    ) -> Result<Self, ImageError> {
        let host = match reference.domain() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let lenient = is_loopback(host) || settings.is_insecure(host);
        let mut registry = Self {
            http: client(host, lenient, settings)?,
            base: format!("https://{host}"),
            reference: reference.clone(),
            access,
            auth: auth.cloned(),
            authorization: Mutex::new(None),
        };
        match registry.ping().await {
            Err(_) if lenient => {
                registry.base = format!("http://{host}");
                registry.ping().await?;
            }
            done => done?,
        }
        Ok(registry)
    }

    /// Connects and fetches what the name stands for: for docker's own registry from the first mirror that has it.
    /// A mirror never gets the user's credentials, and one that fails is no failure.
    pub(super) async fn find(
        reference: &Reference,
        auth: Option<&RegistryAuth>,
        settings: &Registries,
    ) -> Result<(Self, Fetched), ImageError> {
        if reference.domain() == "docker.io" {
            for mirror in &settings.mirrors {
                match Self::find_at(mirror, reference, settings).await {
                    Ok(found) => return Ok(found),
                    Err(error) => {
                        tracing::info!(mirror, error = error.report(), "passing over a mirror");
                    }
                }
            }
        }
        let registry = Self::connect(reference, Access::Pull, auth, settings).await?;
        let top = registry.manifest(&reference.selector()).await?;
        Ok((registry, top))
    }

    async fn find_at(
        mirror: &str,
        reference: &Reference,
        settings: &Registries,
    ) -> Result<(Self, Fetched), ImageError> {
        let base = mirror.trim_end_matches('/');
        let host = base.split_once("://").map_or(base, |(_, host)| host);
        let lenient = is_loopback(host) || settings.is_insecure(host);
        let registry = Self {
            http: client(host, lenient, settings)?,
            base: base.to_owned(),
            reference: reference.clone(),
            access: Access::Pull,
            auth: None,
            authorization: Mutex::new(None),
        };
        registry.ping().await?;
        let top = registry.manifest(&reference.selector()).await?;
        Ok((registry, top))
    }

    /// Asks for the API, and for what it wants to know about us.
    async fn ping(&self) -> Result<(), ImageError> {
        let url = format!("{}/v2/", self.base);
        let response = self
            .http
            .get(&url)
            .send()
            .await
            .map_err(|error| unreachable("Get", &url, &error))?;
        match response.status() {
            StatusCode::UNAUTHORIZED => self.authorize(&url, response.headers()).await,
            status if status.is_success() => Ok(()),
            _ => Err(self.complaint("Get", &url, response).await),
        }
    }

    /// Fetches a manifest or index by tag or digest, and verifies it.
    pub(super) async fn manifest(&self, selector: &str) -> Result<Fetched, ImageError> {
        let url = self.url(&format!("manifests/{selector}"));
        let accepted = MediaType::ACCEPTED.join(", ");
        let response = self
            .send("Get", &url, || {
                self.http.get(&url).header(ACCEPT, &accepted)
            })
            .await?;
        let content = self.body(&url, response).await?;
        let digest = Digest::of(&content);
        if let Ok(expected) = selector.parse::<Digest>()
            && expected != digest
        {
            return Err(ImageError::Digest {
                expected,
                found: digest,
            });
        }
        Ok(Fetched { content, digest })
    }

    /// Fetches small content by digest, and verifies it.
    pub(super) async fn document(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let url = self.url(&format!("blobs/{digest}"));
        let response = self.send("Get", &url, || self.http.get(&url)).await?;
        let content = self.body(&url, response).await?;
        let found = Digest::of(&content);
        if found != *digest {
            return Err(ImageError::Digest {
                expected: digest.clone(),
                found,
            });
        }
        Ok(content)
    }

    /// Starts to fetch a blob from byte `from` on. Returns the stream, and where it really starts.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        from: u64,
    ) -> Result<(Response, u64), ImageError> {
        let url = self.url(&format!("blobs/{digest}"));
        let response = self
            .send("Get", &url, || match from {
                0 => self.http.get(&url),
                _ => self.http.get(&url).header(RANGE, format!("bytes={from}-")),
            })
            .await?;
        let start = if response.status() == StatusCode::PARTIAL_CONTENT {
            from
        } else {
            0
        };
        Ok((response, start))
    }

    /// Whether the repository has this blob.
    pub(super) async fn has_blob(&self, digest: &Digest) -> Result<bool, ImageError> {
        let url = self.url(&format!("blobs/{digest}"));
        let answer = self.send_any("Head", &url, || self.http.head(&url)).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(self.complaint("Head", &url, answer).await),
        }
    }

    /// Uploads a blob in one piece; `body` is called once.
    pub(super) async fn upload(
        &self,
        digest: &Digest,
        size: u64,
        body: reqwest::Body,
    ) -> Result<(), ImageError> {
        let start = self.url("blobs/uploads/");
        let response = self
            .send("Post", &start, || {
                self.http.post(&start).header("Content-Length", 0)
            })
            .await?;
        let location = response
            .headers()
            .get("Location")
            .and_then(|value| value.to_str().ok());
        let mut target = location
            .and_then(|location| response.url().join(location).ok())
            .ok_or_else(|| self.wrong("Post", &start, "the answer names no place to upload to"))?;
        target
            .query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        let mut request = self
            .http
            .put(target.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header("Content-Length", size)
            .body(body);
        // The place may be on another host, which has no business with our credentials.
        if target.origin() == response.url().origin() {
            request = self.authorized(request);
        }
        let url = target.to_string();
        let response = request
            .send()
            .await
            .map_err(|error| unreachable("Put", &url, &error))?;
        match response.status() {
            status if status.is_success() => Ok(()),
            _ => Err(self.complaint("Put", &url, response).await),
        }
    }

    /// Stores a manifest under a tag.
    pub(super) async fn put_manifest(
        &self,
        tag: &str,
        media_type: &str,
        content: &[u8],
    ) -> Result<(), ImageError> {
        let url = self.url(&format!("manifests/{tag}"));
        self.send("Put", &url, || {
            self.http
                .put(&url)
                .header(CONTENT_TYPE, media_type)
                .body(content.to_vec())
        })
        .await?;
        Ok(())
    }

    fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.reference.path())
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &*self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
        {
            Some(header) => request.header(AUTHORIZATION, header),
            None => request,
        }
    }

    /// Sends a request that must succeed.
    async fn send(
        &self,
        method: &str,
        url: &str,
        build: impl Fn() -> RequestBuilder,
    ) -> Result<Response, ImageError> {
        let response = self.send_any(method, url, build).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.complaint(method, url, response).await)
    }

    /// Sends a request, and once more with new credentials if the registry asks for them.
    async fn send_any(
        &self,
        method: &str,
        url: &str,
        build: impl Fn() -> RequestBuilder,
    ) -> Result<Response, ImageError> {
        let send = || async {
            self.authorized(build())
                .send()
                .await
                .map_err(|error| unreachable(method, url, &error))
        };
        let response = send().await?;
        if response.status() != StatusCode::UNAUTHORIZED
            || !response.headers().contains_key(WWW_AUTHENTICATE)
        {
            return Ok(response);
        }
        self.authorize(url, response.headers()).await?;
        send().await
    }

    /// Answers a challenge: finds credentials for it, and a token where it takes one.
    async fn authorize(&self, url: &str, headers: &HeaderMap) -> Result<(), ImageError> {
        let offers = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let challenge = offers.filter_map(Challenge::parse).next();
        let auth = self.auth.as_ref();
        let header = match (challenge, auth) {
            (_, Some(auth)) if !auth.registry_token.is_empty() => {
                format!("Bearer {}", auth.registry_token)
            }
            (Some(Challenge::Basic), Some(auth)) if !auth.username.is_empty() => basic(auth),
            (Some(Challenge::Basic), _) => {
                return Err(ImageError::Denied(format!(
                    "Get {url:?}: no basic auth credentials"
                )));
            }
            (Some(Challenge::Bearer { realm, service }), auth) => {
                format!(
                    "Bearer {}",
                    self.token(&realm, service.as_deref(), auth).await?
                )
            }
            (None, _) => {
                return Err(self.wrong(
                    "Get",
                    url,
                    "the registry asks for credentials of an unknown kind",
                ));
            }
        };
        *self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(header);
        Ok(())
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        auth: Option<&RegistryAuth>,
    ) -> Result<String, ImageError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        if !realm.starts_with("https://") && !self.base.starts_with("http://") {
            return Err(self.wrong("Get", realm, "the registry wants credentials sent in clear"));
        }
        let actions = match self.access {
            Access::Pull => Some("pull"),
            Access::PullPush => Some("pull,push"),
            Access::Login => None,
        };
        let path = self.reference.path();
        let scope = actions.map(|actions| format!("repository:{path}:{actions}"));
        let mut query = Vec::new();
        query.extend(scope.as_deref().map(|scope| ("scope", scope)));
        query.extend(service.map(|service| ("service", service)));
        let request = match auth {
            Some(auth) if !auth.identity_token.is_empty() => {
                query.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "shoal"),
                    ("refresh_token", &auth.identity_token),
                ]);
                self.http.post(realm).form(&query)
            }
            Some(auth) if !auth.username.is_empty() => self
                .http
                .get(realm)
                .query(&query)
                .header(AUTHORIZATION, basic(auth)),
            _ => self.http.get(realm).query(&query),
        };
        let response = request
            .send()
            .await
            .map_err(|error| unreachable("Get", realm, &error))?;
        if !response.status().is_success() {
            return Err(self.complaint("Get", realm, response).await);
        }
        let body = self.body(realm, response).await?;
        let token: Option<Token> = serde_json::from_slice(&body).ok();
        token
            .and_then(|token| {
                token
                    .token
                    .filter(|token| !token.is_empty())
                    .or(token.access_token)
            })
            .filter(|token| token.bytes().all(|b| b.is_ascii_graphic()))
            .ok_or_else(|| self.wrong("Get", realm, "the answer holds no token"))
    }

    /// Reads a document of bounded size.
    async fn body(&self, url: &str, mut response: Response) -> Result<Vec<u8>, ImageError> {
        let mut content = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| unreachable("Get", url, &error))?
        {
            content.extend_from_slice(&chunk);
            if content.len() as u64 > DOCUMENT_BYTES_MAX {
                return Err(self.wrong("Get", url, "the answer is too long for a document"));
            }
        }
        Ok(content)
    }

    fn wrong(&self, method: &str, url: &str, reason: &str) -> ImageError {
        ImageError::Registry {
            method: method.to_owned(),
            url: url.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// Turns a refusal into docker's words for it (moby's `translatePullError`).
    async fn complaint(&self, method: &str, url: &str, mut response: Response) -> ImageError {
        let status = response.status();
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await
            && body.len() < COMPLAINT_BYTES_MAX
        {
            body.extend_from_slice(&chunk);
        }
        let complaint = serde_json::from_slice::<Complaints>(&body)
            .ok()
            .and_then(|list| list.errors.into_iter().next());
        let (code, message) =
            complaint.map_or_else(Default::default, |first| (first.code, first.message));
        let name = self.reference.familiar_name();
        let is_manifest = url.contains("/manifests/");
        match (code.as_str(), status) {
            ("DENIED", _) | ("", StatusCode::FORBIDDEN) => {
                let message = if message.is_empty() {
                    "requested access to the resource is denied"
                } else {
                    &message
                };
                match self.access {
                    Access::Pull => ImageError::Denied(format!(
                        "pull access denied for {name}, repository does not exist or may require 'docker login': denied: {message}"
                    )),
                    Access::PullPush | Access::Login => {
                        ImageError::Denied(format!("denied: {message}"))
                    }
                }
            }
            ("MANIFEST_UNKNOWN" | "", StatusCode::NOT_FOUND) if is_manifest => {
                let full = self.reference.familiar();
                ImageError::NotFound(format!(
                    "manifest for {full} not found: manifest unknown: manifest unknown"
                ))
            }
            ("NAME_UNKNOWN", _) => ImageError::NotFound(format!(
                "repository {name} not found: name unknown: {message}"
            )),
            ("UNAUTHORIZED", _) | ("", StatusCode::UNAUTHORIZED) => {
                let message = if message.is_empty() {
                    "authentication required"
                } else {
                    &message
                };
                ImageError::Denied(format!("{method} {url:?}: unauthorized: {message}"))
            }
            ("", _) => {
                let start: String = String::from_utf8_lossy(&body).chars().take(200).collect();
                let reason = match start.trim() {
                    "" => format!("unexpected status {status}"),
                    start => format!("unexpected status {status}: {start}"),
                };
                self.wrong(method, url, &reason)
            }
            (code, _) => {
                let reason = format!("{}: {message}", code.to_lowercase().replace('_', " "));
                self.wrong(method, url, &reason)
            }
        }
    }
}

/// A client for one host.
fn client(host: &str, lenient: bool, settings: &Registries) -> Result<Client, ImageError> {
    let mut client = Client::builder()
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE_TIMEOUT)
        .danger_accept_invalid_certs(lenient);
    if is_loopback(host) {
        client = client.no_proxy();
    }
    if !lenient {
        for certificate in host_authorities() {
            client = client.add_root_certificate(certificate.clone());
        }
    }
    let own = certificates(&settings.certs_dir.join(host))?;
    for authority in own.authorities {
        client = client.add_root_certificate(authority);
    }
    if let Some(identity) = own.identity {
        client = client.identity(identity);
    }
    client
        .build()
        .map_err(|error| unreachable("GET", host, &error))
}

/// Tries credentials against the registry they are for.
pub(super) async fn check_login(
    auth: &RegistryAuth,
    settings: &Registries,
) -> Result<(), ImageError> {
    let address = auth.server_address.trim_start_matches("https://");
    let host = address.trim_start_matches("http://").split('/').next();
    let host = host.filter(|host| !host.is_empty()).unwrap_or("docker.io");
    // Repositories need a name; this one is never asked for.
    let reference: Reference = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io/library/login".parse()?,
        host => format!("{host}/login").parse()?,
    };
    let registry = Registry::connect(&reference, Access::Login, Some(auth), settings).await?;
    let url = format!("{}/v2/", registry.base);
    let answer = registry
        .send_any("Get", &url, || registry.http.get(&url))
        .await?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(ImageError::Denied(format!(
            "login attempt to {url} failed with status: {status}"
        ))),
    }
}

/// The deepest cause says it best: `Connection refused`, not "error sending request".
pub(super) fn unreachable(method: &str, url: &str, error: &reqwest::Error) -> ImageError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    ImageError::Registry {
        method: method.to_owned(),
        url: url.to_owned(),
        reason: cause.to_string(),
    }
}

pub(super) fn basic(auth: &RegistryAuth) -> String {
    format!(
        "Basic {}",
        BASE64.encode(format!("{}:{}", auth.username, auth.password))
    )
}

/// `host` without its port.
fn bare_host(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or(host),
    }
}

pub(super) fn is_loopback(host: &str) -> bool {
    let bare = bare_host(host);
    bare == "localhost"
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Whether an entry of the list of insecure registries means this host.
pub(super) fn covers(entry: &str, host: &str) -> bool {
    if entry == host {
        return true;
    }
    let Some((network, bits)) = entry.split_once('/') else {
        return false;
    };
    let masked = |address: IpAddr| -> Option<u128> {
        let (value, width) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), 32u32),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        let rest = width.checked_sub(bits.parse().ok()?)?;
        Some(value.checked_shr(rest).unwrap_or(0))
    };
    match (network.parse::<IpAddr>(), bare_host(host).parse::<IpAddr>()) {
        (Ok(network), Ok(address)) => {
            network.is_ipv4() == address.is_ipv4()
                && masked(network).is_some()
                && masked(network) == masked(address)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insecure_registries_are_hosts_and_networks() {
        assert!(covers("r:5000", "r:5000") && !covers("r:5000", "r:5001"));
        assert!(covers("10.0.0.0/8", "10.1.2.3:5000") && !covers("10.0.0.0/8", "11.1.2.3"));
        assert!(covers("fd00::/8", "[fd00::1]:5000") && covers("0.0.0.0/0", "1.2.3.4"));
        assert!(
            !covers("10.0.0.0/x", "10.1.2.3")
                && !covers("10.0.0.0/33", "10.0.0.0")
                && !covers("::/0", "1.2.3.4")
        );
        assert!(
            is_loopback("127.0.0.1:5000")
                && is_loopback("[::1]:5000")
                && is_loopback("localhost")
                && !is_loopback("10.0.0.1")
        );
    }
}
