//! Certificates of registries.

use std::{ffi::OsStr, fs, io, path::Path, sync::OnceLock};

use super::ImageError;

/// What the host knows about one registry's certificates.
#[derive(Default)]
pub(super) struct Certificates {
    pub(super) authorities: Vec<reqwest::Certificate>,
    pub(super) identity: Option<reqwest::Identity>,
}

/// Reads a registry's directory of certificates: `*.crt` are authorities, `*.cert` with `*.key` is who we are.
pub(super) fn certificates(dir: &Path) -> Result<Certificates, ImageError> {
    let mut found = Certificates::default();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(ImageError::io("list", dir)(error)),
    };
    let read = |path: &Path| fs::read(path).map_err(ImageError::io("read", path));
    let wrong =
        |path: &Path, error: reqwest::Error| ImageError::io("use", path)(io::Error::other(error));
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        match path.extension().and_then(OsStr::to_str) {
            Some("crt") => {
                let bundle = reqwest::Certificate::from_pem_bundle(&read(&path)?);
                found
                    .authorities
                    .extend(bundle.map_err(|error| wrong(&path, error))?);
            }
            Some("cert") => {
                let key = path.with_extension("key");
                if !key.exists() {
                    return Err(ImageError::Archive(format!(
                        "missing key {} for client certificate {}. CA certificates must use the extension .crt",
                        key.display(),
                        path.display()
                    )));
                }
                let mut pem = read(&path)?;
                pem.push(b'\n');
                pem.extend(read(&key)?);
                let identity = reqwest::Identity::from_pem(&pem);
                found.identity = Some(identity.map_err(|error| wrong(&path, error))?);
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The authorities that this host trusts besides the public ones, as an administrator added them; read once.
pub(super) fn host_authorities() -> &'static [reqwest::Certificate] {
    static FOUND: OnceLock<Vec<reqwest::Certificate>> = OnceLock::new();
    let bundles = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
    ];
    FOUND.get_or_init(|| {
        let bundle = bundles.iter().find_map(|path| fs::read(path).ok());
        let certificates = bundle.map(|pem| reqwest::Certificate::from_pem_bundle(&pem));
        certificates
            .transpose()
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot read the certificates that this host trusts");
                None
            })
            .unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_without_a_directory_has_no_certificates_and_a_damaged_one_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let none = certificates(&folder.path().join("r:5000")).unwrap();
        assert!(none.authorities.is_empty() && none.identity.is_none());
        fs::write(folder.path().join("client.cert"), "x").unwrap();
        let said = certificates(folder.path()).err().unwrap().report();
        assert!(said.starts_with("missing key "), "{said}");
        fs::write(folder.path().join("client.key"), "x").unwrap();
        let said = certificates(folder.path()).err().unwrap().report();
        assert!(said.starts_with("cannot use "), "{said}");
    }
}
