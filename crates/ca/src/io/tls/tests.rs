use std::time::{Duration, SystemTime};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpListener,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::{
    core::token::{JoinToken, TokenError},
    io::{
        bootstrap::fetch_root,
        files::{IdentityFiles, KeySeal, StoredIdentity},
        issuer::{NODE_CERTIFICATE_VALIDITY, NodeKey, RootCa, Subject},
    },
};

const DAY: Duration = Duration::from_secs(86_400);

fn identity_at(ca: &RootCa, role: Role, issued: SystemTime) -> NodeIdentity {
    let key = NodeKey::generate().unwrap();
    let subject = Subject {
        node_id: "node1".parse().unwrap(),
        role,
        cluster_id: "cluster1".parse().unwrap(),
    };
    let certificate = ca
        .issue(
            &key.request_pem().unwrap(),
            &subject,
            NODE_CERTIFICATE_VALIDITY,
            issued,
        )
        .unwrap();
    NodeIdentity::new(ca.certificate().clone(), certificate, key.pem()).unwrap()
}

fn identity(ca: &RootCa, role: Role) -> NodeIdentity {
    identity_at(ca, role, SystemTime::now())
}

fn new_ca() -> RootCa {
    RootCa::create(SystemTime::now()).unwrap()
}

/// One byte both ways over TLS; what the server saw of the client, or the first refusal.
async fn talk(
    server: &NodeIdentity,
    clients: ClientAuth,
    root: &RootCertificate,
    client: Option<&NodeIdentity>,
) -> Result<Option<PeerIdentity>, String> {
    let (near, far): (DuplexStream, DuplexStream) = duplex(1 << 16);
    let acceptor = TlsAcceptor::from(server_config(server, clients).unwrap());
    let serving = async move {
        let mut stream = acceptor.accept(far).await.map_err(|e| e.to_string())?;
        stream.write_u8(1).await.map_err(|e| e.to_string())?;
        let certificate = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first())
            .cloned();
        certificate
            .map(|c| peer_identity(&c).map_err(|e| e.to_string()))
            .transpose()
    };
    let connector = TlsConnector::from(client_config(root, client).unwrap());
    let calling = async move {
        let mut stream = connector
            .connect(server_name(Role::Manager), near)
            .await
            .map_err(|e| e.to_string())?;
        // With TLS 1.3 a refused client learns of it with the first byte that it reads.
        stream.read_u8().await.map_err(|e| e.to_string())
    };
    let (served, called) = tokio::join!(serving, calling);
    called?;
    served
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is() {
    let ca = new_ca();
    let seen = talk(
        &identity(&ca, Role::Manager),
        ClientAuth::Required,
        ca.certificate(),
        Some(&identity(&ca, Role::Worker)),
    )
    .await;
    assert_eq!(seen.unwrap().unwrap().role, Role::Worker);
}

#[tokio::test]
async fn a_caller_without_certificate_is_let_in_only_where_that_is_wanted() {
    let ca = new_ca();
    let manager = identity(&ca, Role::Manager);
    assert_eq!(
        talk(&manager, ClientAuth::Optional, ca.certificate(), None).await,
        Ok(None)
    );
    talk(&manager, ClientAuth::Required, ca.certificate(), None)
        .await
        .unwrap_err();
}

#[tokio::test]
async fn a_worker_is_no_manager() {
    let ca = new_ca();
    let error = talk(
        &identity(&ca, Role::Worker),
        ClientAuth::Optional,
        ca.certificate(),
        None,
    )
    .await
    .unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn a_foreign_root_is_refused_on_both_sides() {
    let (ours, theirs) = (new_ca(), new_ca());
    let server = identity(&theirs, Role::Manager);
    talk(&server, ClientAuth::Optional, ours.certificate(), None)
        .await
        .unwrap_err();
    let foreigner = identity(&ours, Role::Manager);
    talk(
        &server,
        ClientAuth::Optional,
        theirs.certificate(),
        Some(&foreigner),
    )
    .await
    .unwrap_err();
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_both_sides() {
    let ca = new_ca();
    let expired = identity_at(
        &ca,
        Role::Manager,
        SystemTime::now() - NODE_CERTIFICATE_VALIDITY - DAY,
    );
    let error = talk(&expired, ClientAuth::Optional, ca.certificate(), None)
        .await
        .unwrap_err();
    assert!(error.contains("expired"), "{error}");
    let server = identity(&ca, Role::Manager);
    talk(
        &server,
        ClientAuth::Optional,
        ca.certificate(),
        Some(&expired),
    )
    .await
    .unwrap_err();
}

#[test]
fn an_identity_of_parts_that_do_not_fit_is_refused() {
    let (ca, other) = (new_ca(), new_ca());
    let good = identity(&ca, Role::Worker);
    let swapped_key = NodeKey::generate().unwrap().pem();
    let parts = |root: &RootCa, key: &str| {
        NodeIdentity::new(
            root.certificate().clone(),
            good.certificate_pem().to_owned(),
            key.to_owned(),
        )
    };
    parts(&ca, good.key_pem()).unwrap();
    parts(&ca, &swapped_key).unwrap_err();
    parts(&other, good.key_pem()).unwrap_err();
}

#[test]
fn an_identity_is_kept_on_disk_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let files = IdentityFiles::new(directory.path().join("certificates"));
    let nothing =
        |files: &IdentityFiles| matches!(files.load(None).unwrap(), StoredIdentity::Nothing);
    assert!(nothing(&files));
    let ca = new_ca();
    files.save(&identity(&ca, Role::Manager), None).unwrap();
    let renewed = identity(&ca, Role::Worker);
    files.save(&renewed, None).unwrap();
    let StoredIdentity::Open(loaded) = files.load(None).unwrap() else {
        panic!("it was not sealed")
    };
    assert_eq!(loaded.peer(), renewed.peer());
    for entry in std::fs::read_dir(directory.path().join("certificates")).unwrap() {
        assert_eq!(
            entry.unwrap().metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    files.clear().unwrap();
    assert!(nothing(&files));
}

/// Turns every byte; enough to see that a seal is asked.
struct Turned(u8);

impl KeySeal for Turned {
    fn seal(&self, plain: &[u8]) -> Vec<u8> {
        let turned = plain.iter().map(|byte| byte ^ 0xa5);
        [self.0].into_iter().chain(turned).collect()
    }
    fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (by, body) = sealed.split_first()?;
        (*by == self.0).then(|| body.iter().map(|byte| byte ^ 0xa5).collect())
    }
}

#[test]
fn a_sealed_key_is_nowhere_on_disk_and_opens_with_its_seal_alone() {
    let directory = tempfile::tempdir().unwrap();
    let files = IdentityFiles::new(directory.path());
    let manager = identity(&new_ca(), Role::Manager);
    files.save(&manager, Some(&Turned(1))).unwrap();
    let key_line = manager.key_pem().lines().nth(1).unwrap();
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains(key_line) && !text.contains("BEGIN PRIVATE KEY"));
    }
    for wrong in [None, Some(&Turned(2) as &dyn KeySeal)] {
        assert!(matches!(files.load(wrong).unwrap(), StoredIdentity::Sealed));
    }
    let StoredIdentity::Open(loaded) = files.load(Some(&Turned(1))).unwrap() else {
        panic!("its own seal opens it")
    };
    assert_eq!(loaded.key_pem(), manager.key_pem());
}

/// A root on its way in, as the cluster issues from it meanwhile.
fn incoming(old: &RootCa) -> (RootCa, RootCa) {
    let now = SystemTime::now();
    let new = new_ca();
    let between = old.cross_sign(&new, now).unwrap();
    let issuing = RootCa::from_pem(new.certificate().pem(), &new.key_pem())
        .unwrap()
        .with_intermediate(&between);
    (new, issuing)
}

/// An identity issued by `ca`, held by a node that trusts `trusted`.
fn identity_under(ca: &RootCa, trusted: &RootCa, role: Role) -> Result<NodeIdentity, CaError> {
    let key = NodeKey::generate().unwrap();
    let subject = Subject {
        node_id: "node1".parse().unwrap(),
        role,
        cluster_id: "cluster1".parse().unwrap(),
    };
    let request = key.request_pem().unwrap();
    let certificate = ca
        .issue(
            &request,
            &subject,
            NODE_CERTIFICATE_VALIDITY,
            SystemTime::now(),
        )
        .unwrap();
    NodeIdentity::new(trusted.certificate().clone(), certificate, key.pem())
}

#[tokio::test]
async fn while_the_root_is_replaced_every_node_believes_every_other() {
    let old = new_ca();
    let (new, issuing) = incoming(&old);
    // Before its turn, with a certificate from the new root, and when the new root is the only one.
    let node = |role| {
        let moved = identity_under(&issuing, &old, role).unwrap();
        let done = moved.under_root(new.certificate().clone()).unwrap();
        assert!(moved.is_issued_by(new.certificate()) && !moved.is_issued_by(old.certificate()));
        [identity(&old, role), moved, done]
    };
    let (managers, workers) = (node(Role::Manager), node(Role::Worker));
    for (server, client) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)] {
        let (server, client) = (&managers[server], &workers[client]);
        let seen = talk(server, ClientAuth::Required, client.root(), Some(client)).await;
        assert_eq!(seen.unwrap().unwrap().role, Role::Worker);
    }
    // Whoever missed it all is left behind.
    let late = talk(
        &managers[2],
        ClientAuth::Required,
        old.certificate(),
        Some(&workers[0]),
    )
    .await;
    assert!(late.is_err(), "{late:?}");
}

#[test]
fn a_root_that_nobody_vouched_for_issues_to_nobody() {
    let (old, stranger) = (new_ca(), new_ca());
    identity_under(&stranger, &old, Role::Manager).unwrap_err();
    // Nor does another root's word help.
    let (_, issuing) = incoming(&stranger);
    identity_under(&issuing, &old, Role::Manager).unwrap_err();
}

#[test]
fn a_root_of_the_users_own_is_checked() {
    let now = SystemTime::now();
    let (good, other) = (new_ca(), new_ca());
    let check = |certificate: &str, key: &str, now, want: &str| {
        let refused = RootCa::from_user(certificate, key, now)
            .unwrap_err()
            .to_string();
        assert!(refused.starts_with(want), "{refused}");
    };
    let (certificate, key) = (good.certificate().pem(), good.key_pem());
    RootCa::from_user(certificate, &key, now).unwrap();
    check(
        certificate,
        &other.key_pem(),
        now,
        "invalid CA key: it is not the key",
    );
    check(
        certificate,
        "nonsense",
        now,
        "invalid CA key: expected a P-256",
    );
    check(
        "nonsense",
        &key,
        now,
        "invalid CA certificate: expected a certificate",
    );
    check(
        certificate,
        &key,
        now - 2 * DAY,
        "invalid CA certificate: it is not valid now",
    );
    let leaf = identity(&good, Role::Manager);
    check(
        leaf.certificate_pem(),
        leaf.key_pem(),
        now,
        "invalid CA certificate: it may not issue",
    );
}

/// Serves handshakes of this identity on loopback until dropped; gives the address.
async fn serve(server: &NodeIdentity) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let acceptor = TlsAcceptor::from(server_config(server, ClientAuth::Optional).unwrap());
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(acceptor.accept(stream).await);
        }
    });
    (address, serving)
}

#[tokio::test]
async fn a_joiner_recognises_the_cluster_by_its_token() {
    let (ca, other) = (new_ca(), new_ca());
    let (address, serving) = serve(&identity(&ca, Role::Manager)).await;
    assert_eq!(
        &fetch_root(&address, &ca.new_join_token()).await.unwrap(),
        ca.certificate()
    );
    let refused = fetch_root(&address, &other.new_join_token())
        .await
        .unwrap_err();
    assert!(
        matches!(refused, CaError::Token(TokenError::ForeignRoot)),
        "{refused:?}"
    );
    serving.abort();

    // A worker that answers with the right root is still not a manager.
    let (address, serving) = serve(&identity(&ca, Role::Worker)).await;
    let refused = fetch_root(&address, &ca.new_join_token())
        .await
        .unwrap_err();
    assert!(matches!(refused, CaError::Fetch { .. }), "{refused:?}");
    serving.abort();

    // Nor is one who shows our root without holding a certificate under it.
    let (address, serving) = serve_forged_chain(&ca, &other).await;
    let refused = fetch_root(&address, &ca.new_join_token())
        .await
        .unwrap_err();
    assert!(matches!(refused, CaError::Fetch { .. }), "{refused:?}");
    serving.abort();
    assert!(JoinToken::parse(&ca.new_join_token().reveal()).is_ok());
}

#[tokio::test]
async fn a_joiner_whose_clock_is_wrong_is_told_that_it_is_the_clock() {
    let ca = new_ca();
    let now = SystemTime::now();
    let check = async |issued_at, what: &str| {
        let (address, serving) = serve(&identity_at(&ca, Role::Manager, issued_at)).await;
        let refused = fetch_root(&address, &ca.new_join_token())
            .await
            .unwrap_err();
        let CaError::Fetch { source, .. } = refused else {
            panic!("{refused:?}")
        };
        let said = source.to_string();
        assert!(
            said.contains(what) && said.contains("this host's clock"),
            "{said}"
        );
        serving.abort();
    };
    // To a host that is five hours behind, a certificate of now begins later; to one years ahead it has ended.
    check(now + DAY / 4, "not valid yet").await;
    check(now - NODE_CERTIFICATE_VALIDITY - DAY, "no longer valid").await;
}

/// A server with a certificate under `real` that shows the root of `shown`.
async fn serve_forged_chain(
    shown: &RootCa,
    real: &RootCa,
) -> (String, tokio::task::JoinHandle<()>) {
    let (mut chain, key) = identity(real, Role::Manager).chain_and_key().unwrap();
    *chain.last_mut().unwrap() = shown.certificate().der().clone();
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(acceptor.accept(stream).await);
        }
    });
    (address, serving)
}
