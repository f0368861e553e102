use expect_test::{Expect, expect};

use super::*;

mod beyond;
mod files;
mod refused;
mod spec;
mod whole;

fn settings() -> Settings<'static> {
    Settings {
        stack: "demo",
        folder: Path::new("/srv/demo"),
        profiles: &[],
    }
}

fn stack(text: &str) -> Result<Stack> {
    let lookup = |name: &str| match name {
        "TAG" => Some("1.27".to_owned()),
        "HOME" => Some("/home/me".to_owned()),
        "PASSWORD" => Some("hunter2".to_owned()),
        _ => None,
    };
    let source = Source {
        name: "demo.yml".to_owned(),
        text: text.to_owned(),
    };
    load(&[source], &settings(), &lookup)
}

fn check(text: &str, want: &Expect) {
    let seen = match stack(text) {
        Ok(stack) => {
            let mut out: Vec<String> = stack.warnings.clone();
            out.extend(
                stack
                    .networks
                    .iter()
                    .filter_map(|network| Some(network.create.as_ref()?.to_string())),
            );
            for data in stack.secrets.iter().chain(&stack.configs) {
                out.push(
                    data.create
                        .as_ref()
                        .map_or_else(|| data.name.clone(), Value::to_string),
                );
            }
            out.extend(stack.services.iter().map(crate::output::indented));
            out.join("\n")
        }
        Err(error) => format!("{error:#}"),
    };
    want.assert_eq(&seen);
}

#[test]
fn the_demo_file_is_read() {
    check(
        include_str!("../../../../deploy/examples/demo.yml"),
        &expect![[r#"
            {"Driver":"overlay","Labels":{"com.docker.stack.namespace":"demo"},"Name":"demo_default"}
            {
                "Labels": {
                    "com.docker.stack.image": "shoal-demo:latest",
                    "com.docker.stack.namespace": "demo"
                },
                "Mode": {
                    "Replicated": {
                        "Replicas": 1
                    }
                },
                "Name": "demo_backend",
                "TaskTemplate": {
                    "ContainerSpec": {
                        "Env": [
                            "TASK=backend.{{.Task.Slot}}"
                        ],
                        "Image": "shoal-demo:latest",
                        "Labels": {
                            "com.docker.stack.namespace": "demo"
                        }
                    },
                    "Networks": [
                        {
                            "Aliases": [
                                "backend"
                            ],
                            "Target": "demo_default"
                        }
                    ]
                }
            }
            {
                "EndpointSpec": {
                    "Ports": [
                        {
                            "Protocol": "tcp",
                            "PublishMode": "ingress",
                            "PublishedPort": 8080,
                            "TargetPort": 80
                        }
                    ]
                },
                "Labels": {
                    "com.docker.stack.image": "shoal-demo:latest",
                    "com.docker.stack.namespace": "demo"
                },
                "Mode": {
                    "Replicated": {
                        "Replicas": 3
                    }
                },
                "Name": "demo_web",
                "TaskTemplate": {
                    "ContainerSpec": {
                        "Env": [
                            "BACKEND=backend",
                            "TASK=web.{{.Task.Slot}}"
                        ],
                        "Image": "shoal-demo:latest",
                        "Labels": {
                            "com.docker.stack.namespace": "demo"
                        }
                    },
                    "Networks": [
                        {
                            "Aliases": [
                                "web"
                            ],
                            "Target": "demo_default"
                        }
                    ],
                    "RestartPolicy": {
                        "Condition": "any",
                        "Delay": 1000000000
                    }
                }
            }"#]],
    );
}

#[test]
fn short_and_long_forms_mean_the_same() {
    let short = stack("services: {a: {image: x, ports: ['8080:80'], volumes: ['d:/d:ro'], networks: [n], secrets: [s]}}\nvolumes: {d: }\nnetworks: {n: }\nsecrets: {s: {external: true}}").unwrap();
    let long = stack("services: {a: {image: x, ports: [{target: 80, published: 8080}], volumes: [{type: volume, source: d, target: /d, read_only: true}], networks: {n: }, secrets: [{source: s}]}}\nvolumes: {d: }\nnetworks: {n: }\nsecrets: {s: {external: true}}").unwrap();
    assert_eq!(short.services, long.services);
}

#[test]
fn everything_a_service_can_say() {
    check(
        r#"
x-base: &base
  environment: {LEVEL: info, PORT: 80}
  init: true
services:
  web:
    <<: *base
    image: "nginx:${TAG:-latest}"
    command: ["nginx", "-g", "daemon off;"]
    entrypoint: /bin/entry 'two words'
    env_file: []
    hostname: "{{.Task.Name}}"
    user: "1000"
    working_dir: /srv
    stop_grace_period: 1m30s
    stop_signal: SIGQUIT
    labels: [a=b]
    extra_hosts: ["db:10.0.0.1"]
    dns: 10.0.0.2
    cap_add: [NET_ADMIN]
    sysctls: {net.core.somaxconn: 1024}
    ulimits: {nofile: {soft: 10, hard: 20}, core: 0}
    healthcheck: {test: "curl -f localhost", interval: 5s, retries: 2}
    logging: {driver: json-file, options: {max-size: 1m}}
    ports: ["8443:443", "53:53/udp", {target: 80, published: "8080", mode: host}]
    volumes:
      - data:/data:nocopy
      - ./conf:/etc/nginx:ro
      - ~/x:/x
      - /anon
      - {type: tmpfs, target: /tmp, tmpfs: {size: 64m}}
    networks:
      front: {aliases: [www]}
      default:
    secrets: [{source: key, target: /etc/key, mode: 0400}]
    configs: [site]
    deploy:
      mode: replicated
      replicas: 0
      endpoint_mode: dnsrr
      labels: {tier: front}
      update_config: {parallelism: 0, order: start-first, failure_action: rollback, max_failure_ratio: 0.3}
      rollback_config: {monitor: 1s}
      restart_policy: {condition: on-failure, delay: 0s, max_attempts: 3, window: 2m}
      placement: {constraints: [node.role==worker], preferences: [{spread: node.labels.zone}], max_replicas_per_node: 2}
      resources:
        limits: {cpus: '0.50', memory: 64M, pids: 100}
        reservations: {cpus: 0.25, memory: 32m, generic_resources: [{discrete_resource_spec: {kind: gpu, value: 1}}]}
volumes:
  data: {driver: local, driver_opts: {o: size=1g}}
networks:
  front:
    driver_opts: {encrypted: ""}
    internal: true
    ipam: {config: [{subnet: 10.9.0.0/24, gateway: 10.9.0.1}]}
  unused: {}
secrets:
  key: {environment: PASSWORD}
configs:
  site: {content: "hello ${TAG}"}
"#,
        &expect![[r#"
            {"Driver":"overlay","Labels":{"com.docker.stack.namespace":"demo"},"Name":"demo_default"}
            {"Attachable":false,"Driver":"overlay","IPAM":{"Config":[{"Gateway":"10.9.0.1","Subnet":"10.9.0.0/24"}],"Driver":"default"},"Internal":true,"Labels":{"com.docker.stack.namespace":"demo"},"Name":"demo_front","Options":{"encrypted":""}}
            {"Data":"aHVudGVyMg==","Labels":{"com.docker.stack.namespace":"demo"},"Name":"demo_key"}
            {"Data":"aGVsbG8gMS4yNw==","Labels":{"com.docker.stack.namespace":"demo"},"Name":"demo_site"}
            {
                "EndpointSpec": {
                    "Mode": "dnsrr",
                    "Ports": [
                        {
                            "Protocol": "udp",
                            "PublishMode": "ingress",
                            "PublishedPort": 53,
                            "TargetPort": 53
                        },
                        {
                            "Protocol": "tcp",
                            "PublishMode": "host",
                            "PublishedPort": 8080,
                            "TargetPort": 80
                        },
                        {
                            "Protocol": "tcp",
                            "PublishMode": "ingress",
                            "PublishedPort": 8443,
                            "TargetPort": 443
                        }
                    ]
                },
                "Labels": {
                    "com.docker.stack.image": "nginx:1.27",
                    "com.docker.stack.namespace": "demo",
                    "tier": "front"
                },
                "Mode": {
                    "Replicated": {
                        "Replicas": 0
                    }
                },
                "Name": "demo_web",
                "RollbackConfig": {
                    "Monitor": 1000000000,
                    "Parallelism": 1
                },
                "TaskTemplate": {
                    "ContainerSpec": {
                        "Args": [
                            "nginx",
                            "-g",
                            "daemon off;"
                        ],
                        "CapabilityAdd": [
                            "CAP_NET_ADMIN"
                        ],
                        "Command": [
                            "/bin/entry",
                            "two words"
                        ],
                        "Configs": [
                            {
                                "ConfigName": "demo_site",
                                "File": {
                                    "GID": "0",
                                    "Mode": 292,
                                    "Name": "site",
                                    "UID": "0"
                                }
                            }
                        ],
                        "DNSConfig": {
                            "Nameservers": [
                                "10.0.0.2"
                            ]
                        },
                        "Dir": "/srv",
                        "Env": [
                            "LEVEL=info",
                            "PORT=80"
                        ],
                        "Healthcheck": {
                            "Interval": 5000000000,
                            "Retries": 2,
                            "Test": [
                                "CMD-SHELL",
                                "curl -f localhost"
                            ]
                        },
                        "Hostname": "{{.Task.Name}}",
                        "Hosts": [
                            "10.0.0.1 db"
                        ],
                        "Image": "nginx:1.27",
                        "Init": true,
                        "Labels": {
                            "a": "b",
                            "com.docker.stack.namespace": "demo"
                        },
                        "Mounts": [
                            {
                                "Source": "demo_data",
                                "Target": "/data",
                                "Type": "volume",
                                "VolumeOptions": {
                                    "DriverConfig": {
                                        "Name": "local",
                                        "Options": {
                                            "o": "size=1g"
                                        }
                                    },
                                    "Labels": {
                                        "com.docker.stack.namespace": "demo"
                                    },
                                    "NoCopy": true
                                }
                            },
                            {
                                "BindOptions": {
                                    "CreateMountpoint": true
                                },
                                "ReadOnly": true,
                                "Source": "/srv/demo/conf",
                                "Target": "/etc/nginx",
                                "Type": "bind"
                            },
                            {
                                "BindOptions": {
                                    "CreateMountpoint": true
                                },
                                "Source": "/home/me/x",
                                "Target": "/x",
                                "Type": "bind"
                            },
                            {
                                "Target": "/anon",
                                "Type": "volume"
                            },
                            {
                                "Target": "/tmp",
                                "TmpfsOptions": {
                                    "SizeBytes": 67108864
                                },
                                "Type": "tmpfs"
                            }
                        ],
                        "Secrets": [
                            {
                                "File": {
                                    "GID": "0",
                                    "Mode": 256,
                                    "Name": "/etc/key",
                                    "UID": "0"
                                },
                                "SecretName": "demo_key"
                            }
                        ],
                        "StopGracePeriod": 90000000000,
                        "StopSignal": "SIGQUIT",
                        "Sysctls": {
                            "net.core.somaxconn": "1024"
                        },
                        "Ulimits": [
                            {
                                "Hard": 0,
                                "Name": "core",
                                "Soft": 0
                            },
                            {
                                "Hard": 20,
                                "Name": "nofile",
                                "Soft": 10
                            }
                        ],
                        "User": "1000"
                    },
                    "LogDriver": {
                        "Name": "json-file",
                        "Options": {
                            "max-size": "1m"
                        }
                    },
                    "Networks": [
                        {
                            "Aliases": [
                                "web"
                            ],
                            "Target": "demo_default"
                        },
                        {
                            "Aliases": [
                                "www",
                                "web"
                            ],
                            "Target": "demo_front"
                        }
                    ],
                    "Placement": {
                        "Constraints": [
                            "node.role==worker"
                        ],
                        "MaxReplicas": 2,
                        "Preferences": [
                            {
                                "Spread": {
                                    "SpreadDescriptor": "node.labels.zone"
                                }
                            }
                        ]
                    },
                    "Resources": {
                        "Limits": {
                            "MemoryBytes": 67108864,
                            "NanoCPUs": 500000000,
                            "Pids": 100
                        },
                        "Reservations": {
                            "GenericResources": [
                                {
                                    "DiscreteResourceSpec": {
                                        "Kind": "gpu",
                                        "Value": 1
                                    }
                                }
                            ],
                            "MemoryBytes": 33554432,
                            "NanoCPUs": 250000000
                        }
                    },
                    "RestartPolicy": {
                        "Condition": "on-failure",
                        "Delay": 0,
                        "MaxAttempts": 3,
                        "Window": 120000000000
                    }
                },
                "UpdateConfig": {
                    "FailureAction": "rollback",
                    "MaxFailureRatio": 0.3,
                    "Order": "start-first",
                    "Parallelism": 0
                }
            }"#]],
    );
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, problem) in [
        (
            "services:\n  web:\n    imagee: a\n",
            "demo.yml:3: services.web Additional property imagee is not allowed; did you mean \"image\"?",
        ),
        (
            "service: {}\n",
            "demo.yml:1: (root) Additional property service is not allowed; did you mean \"services\"?",
        ),
        (
            "services:\n  web:\n    image: a\n    deploy:\n      replica: 2\n",
            "demo.yml:5: services.web.deploy Additional property replica is not allowed; did you mean \"replicas\"?",
        ),
        (
            "services:\n  web: {ports: [80]}\n",
            "demo.yml:2: services.web needs an image",
        ),
        (
            "services:\n  web:\n    image: a\n    deploy:\n      replicas: many\n",
            "demo.yml:5: services.web.deploy.replicas must be an integer, not \"many\"",
        ),
        (
            "services:\n  web:\n    image: a\n    networks: [backend]\n",
            "demo.yml:4: services.web.networks[0] uses the network \"backend\", which the file does not declare",
        ),
        (
            "services:\n  web:\n    image: a\n    volumes: ['d:/d']\n",
            "demo.yml:4: services.web.volumes[0] uses the volume \"d\", which the file does not declare",
        ),
        (
            "services:\n  web:\n    image: a\n    ports:\n      - http\n",
            "demo.yml:5: services.web.ports[0] is no port: invalid containerPort: http",
        ),
        (
            "services:\n  web:\n    image: \"a:${B?no b}\"\n",
            "demo.yml:3: required variable B is missing a value: no b",
        ),
        (
            "services:\n  web:\n    image: \"a:${B\"\n",
            "demo.yml:3: invalid interpolation format for services.web.image: \"a:${B\"; you may need to escape any $ with another $",
        ),
        (
            "services:\n  web:\n    image: a\n    deploy: {mode: global, replicas: 2}\n",
            "demo.yml:4: services.web.deploy.replicas can only be used with replicated or replicated-job mode",
        ),
        (
            "services:\n  web: [image]\n",
            "demo.yml:2: services.web must be a mapping",
        ),
        (
            "services:\n  web:\n    image: a\n    healthcheck: {interval: 5}\n",
            "demo.yml:4: services.web.healthcheck.interval is an invalid duration \"5\": expected for instance 10s, 1m30s or 500ms",
        ),
        (
            "secrets:\n  key: {}\n",
            "demo.yml:2: secrets.key needs file, environment or external",
        ),
    ] {
        assert_eq!(stack(text).unwrap_err().to_string(), problem);
    }
}

#[test]
fn broken_yaml_has_a_line() {
    for text in [
        "services:\n  web: [\n",
        "a: b: c\n",
        "a: 1\na: 2\n",
        "services: *nothing\n",
        "\t- x",
    ] {
        let problem = stack(text).unwrap_err();
        let problem = problem
            .downcast_ref::<Problem>()
            .expect("a problem with a place");
        assert!(problem.line >= 1 && !problem.what.is_empty(), "{problem}");
    }
}

#[test]
fn keys_without_effect_are_warned_of() {
    let stack =
        stack("services:\n  web:\n    image: a\n    build: .\n    container_name: x\n").unwrap();
    expect![[r#"
        demo.yml:4: services.web.build has no effect in a stack
        demo.yml:5: services.web.container_name has no effect in a stack"#]]
    .assert_eq(&stack.warnings.join("\n"));
}

#[test]
fn addresses_become_labels() {
    let stack = stack("services:\n  web:\n    image: a\n    ports: ['127.0.0.1:80:80', {target: 53, protocol: udp, host_ip: 'fd00::5'}]\n    networks: {front: {ipv4_address: 10.0.5.9}}\nnetworks: {front: }\n").unwrap();
    assert_eq!(
        stack.warnings,
        [
            "demo.yml:4: services.web.ports[0] listens at 127.0.0.1 alone, where Swarm would listen at every address",
            "demo.yml:4: services.web.ports[1] listens at fd00::5 alone, where Swarm would listen at every address",
        ]
    );
    let labels = &stack.services[0]["Labels"];
    assert_eq!(labels["shoal.publish.80.host-ip"], "127.0.0.1");
    assert_eq!(labels["shoal.publish.53/udp.host-ip"], "fd00::5");
    assert_eq!(labels["shoal.ip"], "demo_front=10.0.5.9");
}

#[test]
fn later_files_lie_over_earlier_ones() {
    let base = "services:\n  web:\n    image: a\n    command: [x, y]\n    environment: [A=1, B=2]\n    ports: ['80:80', '443:443']\n";
    let over = "services:\n  web:\n    command: [z]\n    environment: {B: 3}\n    ports: ['8080:8080']\n  db:\n    image: 1.10\n";
    let sources = [("a.yml", base), ("b.yml", over)].map(|(name, text)| Source {
        name: name.to_owned(),
        text: text.to_owned(),
    });
    expect![[r#"
        services:
          web:
            image: a
            command:
              - z
            environment:
              A: "1"
              B: 3
            ports:
              - "80:80"
              - "443:443"
              - "8080:8080"
          db:
            image: 1.10
    "#]]
    .assert_eq(&config(&sources, &settings(), Some(&|_| None)).unwrap());
}
