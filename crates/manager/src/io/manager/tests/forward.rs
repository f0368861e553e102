//! Writes that are passed on: to the leader, and to the next one when nobody knows what became of them.

use shoal_api::wire::WriteRequest;

use super::*;

/// A write by name, as a manager passes it on.
async fn pass_on(
    manager: &Manager,
    identity: &NodeIdentity,
    request: &WriteRequest,
) -> Result<ObjectKey, Status> {
    let tls = client_config(identity.root(), Some(identity)).unwrap();
    let mut client = ControlClient::new(client::dial(&manager.address().to_string(), tls));
    let answer = client.write(Request::new(request.clone())).await?;
    let object = answer.into_inner().object.expect("something was made");
    Ok(Object::try_from(object).unwrap().key())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_passed_on_again_is_carried_out_once() {
    within(async {
        let mut cluster = Cluster::found().await;
        cluster.join_manager().await;
        cluster.join_manager().await;
        let leader = cluster.manager(0).leadership().borrow().leader.unwrap();
        let leader = usize::try_from(leader).unwrap() - 1;
        let (first, identity, _) = cluster.managers[leader].as_ref().unwrap();
        let since = first.state().index();
        let mut request = WriteRequest {
            wish: vec![7; 16],
            ..WriteRequest::from(&config_object("a"))
        };
        let made = pass_on(first, identity, &request).await.unwrap();
        // Whoever lost the answer asks again, the same one or the next.
        request.since = Some(since);
        assert_eq!(pass_on(first, identity, &request).await.unwrap(), made);
        let identity = identity.clone();
        cluster.stop(leader).await;
        let left = cluster.managers.iter().flatten().next().unwrap();
        left.0.write(config_object("b")).await.unwrap();
        let leads = |(manager, ..): &&(Manager, _, _)| manager.leadership().borrow().is_leader;
        let (next, ..) = cluster.managers.iter().flatten().find(leads).unwrap();
        assert_eq!(pass_on(next, &identity, &request).await.unwrap(), made);
        assert_eq!(next.state().configs().count(), 2);
        // Another user who wants the same is told that it is taken.
        request.wish = vec![8; 16];
        let taken = pass_on(next, &identity, &request).await.unwrap_err();
        assert_eq!(taken.code(), tonic::Code::AlreadyExists);
        request.wish = vec![8; 15];
        let refused = pass_on(next, &identity, &request).await.unwrap_err();
        assert_eq!(refused.message(), "wish: 15 bytes, 16 expected");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_many_outlive_their_leader() {
    const WRITERS: usize = 20;
    const WRITES: usize = 10;
    within(async {
        let mut cluster = Cluster::found().await;
        cluster.join_manager().await;
        cluster.join_manager().await;
        let leader = cluster.manager(0).leadership().borrow().leader.unwrap();
        let leader = usize::try_from(leader).unwrap() - 1;
        let desk = cluster.manager((leader + 1) % 3).desk.clone();
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let desk = desk.clone();
            writers.spawn(async move {
                for write in 0..WRITES {
                    let name = format!("c{writer}-{write}");
                    let made = desk.write(config_object(&name)).await;
                    made.unwrap_or_else(|error| panic!("{name}: {error}"));
                }
            });
        }
        // In the midst of it.
        until(cluster.manager(leader), |state| {
            state.configs().count() > WRITERS
        })
        .await;
        cluster.stop(leader).await;
        while let Some(done) = writers.join_next().await {
            done.unwrap();
        }
        let state = desk.latest().await.unwrap();
        assert_eq!(state.configs().count(), WRITERS * WRITES);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_with_a_long_history_of_large_specs_is_changed_through_any_manager() {
    within(async {
        let mut cluster = Cluster::found().await;
        let place = cluster.join_manager().await;
        let follower = cluster.manager(place);
        let large = |number: usize| {
            let mut spec = crate::core::fixture::service("large", 0);
            let value = "x".repeat(250 << 10);
            spec.task.container.env = vec![format!("N{number}={value}")];
            Spec::Service(Box::new(spec))
        };
        let made = follower.write(Intent::Create(large(0))).await.unwrap();
        let Some(ObjectKey::Service(id)) = made.map(|object| object.key()) else {
            panic!("a service was written")
        };
        for number in 1..=12 {
            // The managers write down how the last update goes meanwhile.
            let written = loop {
                let state = follower.latest().await.unwrap();
                let update = Intent::Update {
                    key: ObjectKey::Service(id.clone()),
                    version: state.service(&id).unwrap().meta.version,
                    spec: large(number),
                };
                match follower.write(update).await {
                    Err(WriteError::Refused(refusal))
                        if refusal.text == "update out of sequence" => {}
                    settled => break settled,
                }
            };
            written.unwrap();
        }
        let state = follower.latest().await.unwrap();
        assert_eq!(state.service(&id).unwrap().revision, 13);
    })
    .await;
}
