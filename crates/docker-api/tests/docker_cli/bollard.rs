//! A client with strictly typed answers, the one that our own command line uses.

use ::bollard::{
    Docker,
    models::{ContainerCreateBody, SwarmInitRequest},
    query_parameters::{
        CreateImageOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions,
        InspectNetworkOptions, InspectServiceOptions, ListContainersOptionsBuilder,
        ListImagesOptions, ListNetworksOptions, ListServicesOptionsBuilder, ListTasksOptions,
        LogsOptionsBuilder, StatsOptionsBuilder, WaitContainerOptions,
    },
};
use futures_util::StreamExt;

use crate::daemon::Daemon;

#[tokio::test]
async fn every_answer_has_its_type() {
    let daemon = Daemon::start();
    let socket = daemon.dir.path().join("sock");
    let docker =
        Docker::connect_with_unix(socket.to_str().unwrap(), 10, ::bollard::API_DEFAULT_VERSION)
            .unwrap()
            .negotiate_version()
            .await
            .unwrap();
    assert_eq!(docker.version().await.unwrap().api_version.unwrap(), "1.51");
    docker.info().await.unwrap();

    let body = ContainerCreateBody {
        image: Some("demo".to_owned()),
        cmd: Some(vec!["hi".to_owned()]),
        ..ContainerCreateBody::default()
    };
    let id = docker.create_container(None, body).await.unwrap().id;
    docker.start_container(&id, None).await.unwrap();
    let all = ListContainersOptionsBuilder::default().all(true).build();
    assert_eq!(docker.list_containers(Some(all)).await.unwrap().len(), 1);
    docker
        .inspect_container(&id, None::<InspectContainerOptions>)
        .await
        .unwrap();
    docker.top_processes(&id, None).await.unwrap();
    let once = StatsOptionsBuilder::default()
        .stream(false)
        .one_shot(true)
        .build();
    docker.stats(&id, Some(once)).next().await.unwrap().unwrap();
    let both = LogsOptionsBuilder::default()
        .stdout(true)
        .stderr(true)
        .build();
    let lines: Vec<String> = docker
        .logs(&id, Some(both))
        .map(|line| line.unwrap().to_string())
        .collect()
        .await;
    assert_eq!(lines, ["out hi\n", "err hi\n"]);
    let ended = docker
        .wait_container(&id, None::<WaitContainerOptions>)
        .next()
        .await
        .unwrap();
    // A code other than zero is an error to this client.
    assert!(matches!(
        ended.unwrap_err(),
        ::bollard::errors::Error::DockerContainerWaitError { code: 7, .. }
    ));

    docker.list_images(None::<ListImagesOptions>).await.unwrap();
    docker.inspect_image("demo").await.unwrap();
    docker.image_history("demo").await.unwrap();
    docker.inspect_registry_image("demo", None).await.unwrap();
    let pull = CreateImageOptionsBuilder::default()
        .from_image("other")
        .build();
    let messages: Vec<_> = docker.create_image(Some(pull), None, None).collect().await;
    assert!(
        messages.len() == 4 && messages.iter().all(Result::is_ok),
        "{messages:?}"
    );
    let until = EventsOptionsBuilder::default().until("5").build();
    assert!(
        docker
            .events(Some(until))
            .all(|event| async move { event.is_ok() })
            .await
    );
    docker
        .create_volume(::bollard::models::VolumeCreateRequest::default())
        .await
        .unwrap();
    docker
        .list_volumes(None::<::bollard::query_parameters::ListVolumesOptions>)
        .await
        .unwrap();
    docker
        .df(None::<::bollard::query_parameters::DataUsageOptions>)
        .await
        .unwrap();
    docker
        .list_networks(None::<ListNetworksOptions>)
        .await
        .unwrap();

    docker
        .init_swarm(SwarmInitRequest {
            advertise_addr: Some("192.0.2.1".to_owned()),
            ..SwarmInitRequest::default()
        })
        .await
        .unwrap();
    docker.inspect_swarm().await.unwrap();
    docker.info().await.unwrap();
    docker
        .list_nodes(None::<::bollard::query_parameters::ListNodesOptions>)
        .await
        .unwrap();
    docker.inspect_node("host-1").await.unwrap();
    let spec = serde_json::from_str(include_str!("service.json")).unwrap();
    let service = docker.create_service(spec, None).await.unwrap().id.unwrap();
    let with_status = ListServicesOptionsBuilder::default().status(true).build();
    docker.list_services(Some(with_status)).await.unwrap();
    let inspected = docker
        .inspect_service(&service, None::<InspectServiceOptions>)
        .await
        .unwrap();
    assert_eq!(inspected.spec.unwrap().name.unwrap(), "web");
    docker.list_tasks(None::<ListTasksOptions>).await.unwrap();
    docker
        .inspect_network("back", None::<InspectNetworkOptions>)
        .await
        .unwrap_err();
    docker
        .list_secrets(None::<::bollard::query_parameters::ListSecretsOptions>)
        .await
        .unwrap();
    docker
        .list_configs(None::<::bollard::query_parameters::ListConfigsOptions>)
        .await
        .unwrap();
    daemon.stop().await;
}
