//! Certificates that end while everything runs.

use shoal_ca::{NodeKey, Subject};

use super::*;

/// The same node's identity, good for so long from now on.
fn ending_in(manager: &Manager, identity: &NodeIdentity, left: Duration) -> NodeIdentity {
    let state = manager.state();
    let cluster = state.cluster().unwrap();
    let ca = RootCa::from_pem(&cluster.root_ca_cert, &cluster.root_ca_key).unwrap();
    let subject = Subject {
        node_id: identity.peer().node_id.clone(),
        role: Role::Manager,
        cluster_id: cluster.id.clone(),
    };
    let hour = Duration::from_secs(3_600);
    let since = std::time::SystemTime::now() - (hour - left);
    let key = NodeKey::generate().unwrap();
    let pem = ca.issue(&key.request_pem().unwrap(), &subject, hour, since);
    NodeIdentity::new(identity.root().clone(), pem.unwrap(), key.pem()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_renew_their_certificates_and_no_write_notices() {
    within(async {
        let mut cluster = Cluster::found().await;
        let (_, token) = cluster.manager(0).join_tokens().unwrap();
        let mut short = Vec::new();
        for _ in 0..2 {
            let identity = cluster.admit(&token).await.unwrap();
            let ends = ending_in(cluster.manager(0), &identity, Duration::from_secs(5));
            short.push(ends.clone());
            cluster.join_manager_as(ends).await;
        }
        let leadership = *cluster.manager(0).leadership().borrow();
        cluster
            .manager(1)
            .write(config_object("before"))
            .await
            .unwrap();
        for (place, ends) in short.iter().enumerate() {
            let renewed = renew_identity(&[cluster.remote()], ends).await.unwrap();
            cluster.manager(place + 1).set_identity(renewed).unwrap();
        }
        // Until the certificates that all connections began with have ended, and each of them with it.
        let end = short.iter().map(|identity| identity.peer().not_after).max();
        let end = end.unwrap() + Duration::from_secs(1);
        let mut number = 0;
        while Timestamp::now() < end {
            for place in 0..3 {
                let name = format!("c{number}-{place}");
                cluster
                    .manager(place)
                    .write(config_object(&name))
                    .await
                    .unwrap();
            }
            number += 1;
        }
        for place in 0..3 {
            let manager = cluster.manager(place);
            let now = *manager.leadership().borrow();
            assert_eq!((now.leader, now.term), (leadership.leader, leadership.term));
            assert_eq!(
                manager.latest().await.unwrap().configs().count(),
                1 + 3 * number
            );
        }
    })
    .await;
}
