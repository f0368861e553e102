//! The cluster's certificate authority: one self-signed root that issues node certificates.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo, string::PrintableString,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use sha2::{Digest, Sha256};
use shoal_api::{ClusterId, NodeId};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use crate::{
    CaError,
    core::{role::Role, token::JoinToken},
};

/// Lifetime of a node certificate unless the cluster says otherwise. As SwarmKit's `DefaultNodeCertExpiration`.
pub const NODE_CERTIFICATE_VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);
/// The shortest lifetime that can be asked for. As SwarmKit's `MinNodeCertExpiration`.
const NODE_CERTIFICATE_VALIDITY_MIN: Duration = Duration::from_secs(3600);
/// Lifetime of the root. As SwarmKit's `RootCAExpiration`.
const ROOT_VALIDITY: Duration = Duration::from_secs(630_720_000);
/// Certificates begin this long ago, for nodes whose clock is behind. As SwarmKit's `CertBackdate`.
const BACKDATE: Duration = Duration::from_secs(3600);
/// Largest certificate request that is looked at. An honest one has under 1 KiB.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// The public half of the authority: what every node trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootCertificate {
    der: CertificateDer<'static>,
    pem: String,
}

impl RootCertificate {
    /// Reads the first certificate of a PEM text.
    pub fn from_pem(pem: &str) -> Result<Self, CaError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| CaError::invalid("root certificate", error))?;
        Ok(Self::from_der(der))
    }

    /// Takes a certificate as it is on the wire.
    pub fn from_der(der: CertificateDer<'static>) -> Self {
        let pem = pem_text("CERTIFICATE", &der);
        Self { der, pem }
    }

    /// The certificate as text.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate as it is on the wire and in digests.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Names the root: SHA-256 of the certificate, lower-case hexadecimal.
    pub fn digest(&self) -> String {
        let digest = Sha256::digest(&self.der);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether this root's key has signed the certificate.
    pub fn has_signed(&self, certificate: &CertificateDer<'_>) -> bool {
        let parse = |der| x509_parser::parse_x509_certificate(der).ok();
        let (Some((_, issuer)), Some((_, issued))) = (parse(&self.der), parse(certificate)) else {
            return false;
        };
        issued.verify_signature(Some(issuer.public_key())).is_ok()
    }

    /// DER of its subject and of its public key, as docker shows them; empty when it cannot be read.
    pub fn subject_and_public_key(&self) -> (Vec<u8>, Vec<u8>) {
        match x509_parser::parse_x509_certificate(&self.der) {
            Ok((_, parsed)) => (
                parsed.subject().as_raw().to_vec(),
                parsed.public_key().raw.to_vec(),
            ),
            Err(_) => Default::default(),
        }
    }
}

/// Whom a node certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Common name; chosen by the manager, never by the node.
    pub node_id: NodeId,
    /// Organizational unit.
    pub role: Role,
    /// Organization.
    pub cluster_id: ClusterId,
}

/// The authority itself. Its key lives in the replicated state and in managers' memory, never in a file of its own.
pub struct RootCa {
    certificate: RootCertificate,
    issuer: Issuer<'static, KeyPair>,
    /// PEM of what comes between a certificate and an older root; empty but for a rotation of the root.
    intermediate: String,
}

impl fmt::Debug for RootCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootCa")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl RootCa {
    /// Makes a new root: P-256, 20 years, CN `swarm-ca`, at most one intermediate below it.
    pub fn create(now: SystemTime) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "swarm-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial());
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + ROOT_VALIDITY).into();
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate: RootCertificate::from_der(certificate.der().clone()),
            issuer: Issuer::new(params, key),
            intermediate: String::new(),
        })
    }

    /// Takes up a root kept as PEM.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let certificate = RootCertificate::from_pem(certificate_pem)?;
        let key = KeyPair::from_pem(key_pem)?;
        let issuer = Issuer::from_ca_cert_der(certificate.der(), key)?;
        Ok(Self {
            certificate,
            issuer,
            intermediate: String::new(),
        })
    }

    /// Takes up a root that a user brings along.
    ///
    /// # Errors
    /// It is no authority, not valid now, or the key is not its key.
    pub fn from_user(
        certificate_pem: &str,
        key_pem: &str,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        const WHAT: &str = "CA certificate";
        let root = RootCertificate::from_pem(certificate_pem)
            .map_err(|_| CaError::invalid(WHAT, "expected a certificate as PEM"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(root.der())
            .map_err(|error| CaError::invalid(WHAT, error))?;
        if !parsed.is_ca() {
            return Err(CaError::invalid(
                WHAT,
                "it may not issue certificates (basic constraint CA)",
            ));
        }
        let seconds = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let validity = parsed.validity();
        if !(validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&seconds) {
            return Err(CaError::invalid(WHAT, "it is not valid now"));
        }
        let key = KeyPair::from_pem(key_pem).map_err(|_| {
            CaError::invalid("CA key", "expected a P-256 or Ed25519 key as PKCS#8 PEM")
        })?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(CaError::invalid(
                "CA key",
                "it is not the key of the CA certificate",
            ));
        }
        Self::from_pem(certificate_pem, key_pem)
    }

    /// The same authority, whose certificates are believed under an older root too because of this certificate
    /// ([`RootCa::cross_sign`] of the older one).
    #[must_use]
    pub fn with_intermediate(self, intermediate_pem: &str) -> Self {
        Self {
            intermediate: intermediate_pem.to_owned(),
            ..self
        }
    }

    /// Certifies the key of another root, so that whoever trusts this one believes the other's certificates. Returns PEM.
    pub fn cross_sign(&self, other: &Self, now: SystemTime) -> Result<String, CaError> {
        const WHAT: &str = "CA certificate";
        let (_, parsed) = x509_parser::parse_x509_certificate(other.certificate.der())
            .map_err(|error| CaError::invalid(WHAT, error))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = copy_name(parsed.subject());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial());
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + ROOT_VALIDITY).into();
        let certificate = params.signed_by(other.issuer.key(), &self.issuer)?;
        let (_, made) = x509_parser::parse_x509_certificate(certificate.der())
            .map_err(|error| CaError::invalid(WHAT, error))?;
        if made.subject().as_raw() != parsed.subject().as_raw() {
            return Err(CaError::invalid(
                WHAT,
                "its subject cannot be written alike in another certificate; use printable or UTF-8 strings",
            ));
        }
        Ok(certificate.pem())
    }

    /// The public half.
    pub fn certificate(&self) -> &RootCertificate {
        &self.certificate
    }

    /// The private key as PKCS#8 PEM.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Draws a fresh join token for this root.
    pub fn new_join_token(&self) -> JoinToken {
        JoinToken::new(self.certificate.der(), random_bytes())
    }

    /// Issues a certificate for the public key of a request; nothing else of the request is believed.
    ///
    /// The request must be signed by that key. Lifetimes under an hour are raised to one hour. Returns PEM.
    pub fn issue(
        &self,
        request_pem: &str,
        subject: &Subject,
        validity: Duration,
        now: SystemTime,
    ) -> Result<String, CaError> {
        let public_key = public_key_of_request(request_pem)?;
        let role = subject.role.certificate_name();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, subject.cluster_id.as_str());
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, role);
        params
            .distinguished_name
            .push(DnType::CommonName, subject.node_id.as_str());
        params.subject_alt_names = [role, subject.node_id.as_str()]
            .into_iter()
            .chain((subject.role == Role::Manager).then_some("swarm-ca"))
            .map(|name| Ok(SanType::DnsName(name.try_into()?)))
            .collect::<Result<_, rcgen::Error>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.serial_number = Some(random_serial());
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + validity.max(NODE_CERTIFICATE_VALIDITY_MIN)).into();
        let certificate = params.signed_by(&public_key, &self.issuer)?.pem();
        Ok(format!("{certificate}{}", self.intermediate))
    }
}

/// A node's private key. Made on the node and regenerated at each renewal.
pub struct NodeKey(KeyPair);

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(…)")
    }
}

impl NodeKey {
    /// Makes a new P-256 key.
    pub fn generate() -> Result<Self, CaError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// A certificate request signed by the key, as PEM. It names nobody: the manager decides that.
    pub fn request_pem(&self) -> Result<String, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.pem()?)
    }

    /// The private key as PKCS#8 PEM.
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }
}

fn public_key_of_request(request_pem: &str) -> Result<SubjectPublicKeyInfo, CaError> {
    const WHAT: &str = "certificate request";
    if request_pem.len() > REQUEST_BYTES_MAX {
        return Err(CaError::invalid(WHAT, "it is larger than 64 KiB"));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(request_pem.as_bytes())
        .map_err(|error| CaError::invalid(WHAT, error))?;
    let (_, request) =
        X509CertificationRequest::from_der(&der).map_err(|error| CaError::invalid(WHAT, error))?;
    request
        .verify_signature()
        .map_err(|_| CaError::invalid(WHAT, "its signature is not by its own key"))?;
    let public_key =
        SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
            .map_err(|_| CaError::invalid(WHAT, "keys of this type are not supported"))?;
    let allowed = [&PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519];
    if !allowed.contains(&PublicKeyData::algorithm(&public_key)) {
        return Err(CaError::invalid(WHAT, "the key must be P-256 or Ed25519"));
    }
    Ok(public_key)
}

/// A distinguished name with the same attributes, in the same kinds of strings.
fn copy_name(name: &x509_parser::x509::X509Name<'_>) -> DistinguishedName {
    let mut copy = DistinguishedName::new();
    for attribute in name.iter_attributes() {
        let Ok(text) = attribute.as_str() else {
            continue; // noticed when both are compared
        };
        let oid: Vec<u64> = attribute.attr_type().iter().into_iter().flatten().collect();
        let kind = DnType::from_oid(&oid);
        let is_printable =
            attribute.attr_value().tag() == x509_parser::asn1_rs::Tag::PrintableString;
        let printable = PrintableString::try_from(text)
            .ok()
            .filter(|_| is_printable);
        match printable {
            Some(text) => copy.push(kind, DnValue::PrintableString(text)),
            None => copy.push(kind, text),
        }
    }
    copy
}

fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes after boot");
    bytes
}

fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = random_bytes();
    bytes[0] = bytes[0] & 0x7f | 0x01; // positive and without leading zeros (RFC 5280 §4.1.2.2)
    SerialNumber::from_slice(&bytes)
}

/// Wraps DER as PEM, 64 characters a line (RFC 7468).
pub(crate) fn pem_text(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::tls::peer_identity;

    fn subject(role: Role) -> Subject {
        Subject {
            node_id: "node1".parse().unwrap(),
            role,
            cluster_id: "cluster1".parse().unwrap(),
        }
    }

    #[test]
    fn a_certificate_says_who_its_holder_is() {
        let now = SystemTime::now();
        let ca = RootCa::create(now).unwrap();
        let key = NodeKey::generate().unwrap();
        let pem = ca
            .issue(
                &key.request_pem().unwrap(),
                &subject(Role::Worker),
                NODE_CERTIFICATE_VALIDITY,
                now,
            )
            .unwrap();
        let peer = peer_identity(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        assert_eq!(peer.node_id.as_str(), "node1");
        assert_eq!(peer.role, Role::Worker);
        assert_eq!(peer.cluster_id.as_str(), "cluster1");
        assert_eq!(
            peer.not_after.since(peer.not_before),
            NODE_CERTIFICATE_VALIDITY + BACKDATE
        );
    }

    #[test]
    fn the_root_survives_being_kept_as_text() {
        let now = SystemTime::now();
        let ca = RootCa::create(now).unwrap();
        let token = ca.new_join_token();
        let again = RootCa::from_pem(ca.certificate().pem(), &ca.key_pem()).unwrap();
        assert_eq!(again.certificate(), ca.certificate());
        assert!(token.matches_root(again.certificate().der()));
        let request = NodeKey::generate().unwrap().request_pem().unwrap();
        again
            .issue(
                &request,
                &subject(Role::Manager),
                NODE_CERTIFICATE_VALIDITY,
                now,
            )
            .unwrap();
    }

    #[test]
    fn of_a_request_only_the_public_key_is_used() {
        let now = SystemTime::now();
        let ca = RootCa::create(now).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["swarm-manager".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "somebody-else");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let pem = ca
            .issue(
                &request,
                &subject(Role::Worker),
                NODE_CERTIFICATE_VALIDITY,
                now,
            )
            .unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!certificate.is_ca());
        let names = format!("{:?}", certificate.subject_alternative_name().unwrap());
        assert!(!names.contains("swarm-manager"), "{names}");
        assert_eq!(peer_identity(&der).unwrap().node_id.as_str(), "node1");
    }

    #[test]
    fn a_bad_request_is_refused() {
        let now = SystemTime::now();
        let ca = RootCa::create(now).unwrap();
        let good = NodeKey::generate().unwrap().request_pem().unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap();
        let mut forged = der.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let p384 = CertificateParams::default()
            .serialize_request(&p384)
            .unwrap()
            .pem()
            .unwrap();
        for bad in [
            String::new(),
            "x".repeat(1 << 20),
            good.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
            pem_text("CERTIFICATE REQUEST", &forged),
            pem_text("CERTIFICATE REQUEST", b"\x30\x82\xff\xff"),
            p384,
        ] {
            let refused = ca
                .issue(&bad, &subject(Role::Worker), NODE_CERTIFICATE_VALIDITY, now)
                .unwrap_err();
            assert!(
                refused
                    .to_string()
                    .starts_with("invalid certificate request: "),
                "{refused}"
            );
        }
    }
}
