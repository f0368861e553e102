//! One file with every key of the specification: all of it is understood, and what changes nothing is said.

use super::*;

const FILE: &str = include_str!("whole.yml");

#[test]
fn every_key_of_the_specification_is_understood() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("base.labels"), "from.file=yes\n").expect("written");
    let source = Source {
        name: "whole.yml".to_owned(),
        text: FILE.to_owned(),
    };
    let settings = Settings {
        folder: folder.path(),
        ..settings()
    };
    let lookup = |name: &str| (name == "PASSWORD").then(|| "hunter2".to_owned());
    let read = load(&[source], &settings, &lookup).expect("nothing in it is refused");
    let hide = |text: &str| text.replace(&*folder.path().to_string_lossy(), "");
    expect![[r#"
        left out for their profiles, which --profile names: spare
        whole.yml:2: name has no effect in a stack: this one is called "demo"
        whole.yml:242: models has no effect in a stack
        whole.yml:12: services.app.annotations has no effect in a stack
        whole.yml:13: services.app.attach has no effect in a stack
        whole.yml:14: services.app.blkio_config has no effect in a stack
        whole.yml:21: services.app.build has no effect in a stack
        whole.yml:39: services.app.container_name has no effect in a stack
        whole.yml:40: services.app.cpu_count has no effect in a stack
        whole.yml:41: services.app.cpu_percent has no effect in a stack
        whole.yml:42: services.app.cpu_period has no effect in a stack
        whole.yml:43: services.app.cpu_quota has no effect in a stack
        whole.yml:44: services.app.cpu_rt_period has no effect in a stack
        whole.yml:45: services.app.cpu_rt_runtime has no effect in a stack
        whole.yml:46: services.app.cpu_shares has no effect in a stack
        whole.yml:49: services.app.credential_spec has no effect in a stack
        whole.yml:73: services.app.develop has no effect in a stack
        whole.yml:83: services.app.expose has no effect in a stack
        whole.yml:84: services.app.external_links has no effect in a stack
        whole.yml:98: services.app.isolation has no effect in a stack
        whole.yml:100: services.app.links has no effect in a stack
        whole.yml:102: services.app.mac_address has no effect in a stack
        whole.yml:107: services.app.models has no effect in a stack
        whole.yml:129: services.app.post_start has no effect in a stack
        whole.yml:130: services.app.pre_stop has no effect in a stack
        whole.yml:133: services.app.pull_refresh_after has no effect in a stack
        whole.yml:136: services.app.runtime has no effect in a stack
        whole.yml:143: services.app.storage_opt has no effect in a stack
        whole.yml:148: services.app.use_api_socket has no effect in a stack
        whole.yml:81: services.app.env_file[0].format has no effect in a stack
        whole.yml:160: services.app.volumes[3].consistency has no effect in a stack
        whole.yml:165: services.app.volumes[4].bind.selinux has no effect in a stack
        whole.yml:112: services.app.networks.front.gw_priority has no effect in a stack
        whole.yml:113: services.app.networks.front.interface_name has no effect in a stack
        whole.yml:116: services.app.networks.front.link_local_ips has no effect in a stack
        whole.yml:117: services.app.networks.front.mac_address has no effect in a stack
        whole.yml:118: services.app.networks.front.priority has no effect in a stack
        whole.yml:126: services.app.ports[1] listens at 127.0.0.1 alone, where Swarm would listen at every address
        whole.yml:127: services.app.ports[2].name has no effect in a stack
        whole.yml:127: services.app.ports[2].app_protocol has no effect in a stack
        whole.yml:128: services.app.ports[3] listens at 127.0.0.1 alone, where Swarm would listen at every address
        whole.yml:132: services.app.pull_policy has no effect in a stack
        whole.yml:51: services.app.depends_on.db.restart has no effect in a stack
        whole.yml:71: services.app.deploy.resources.reservations.devices[0].capabilities has no effect in a stack for "utility"
        whole.yml:71: services.app.deploy.resources.reservations.devices[0].options has no effect in a stack
        whole.yml:198: services.elsewhere.provider has no effect in a stack"#]]
    .assert_eq(&hide(&read.warnings.join("\n")));
    let names: Vec<_> = read
        .services
        .iter()
        .map(|service| crate::json::text(service, "/Name"))
        .collect();
    assert_eq!(
        names,
        [
            "demo_base",
            "demo_cache",
            "demo_db",
            "demo_elsewhere",
            "demo_migrate",
            "demo_app"
        ]
    );
    let app = read
        .services
        .last()
        .expect("it comes after those that it waits for");
    expect![[r#"
        {
            "EndpointSpec": {
                "Mode": "vip",
                "Ports": [
                    {
                        "Protocol": "udp",
                        "PublishMode": "host",
                        "PublishedPort": 5353,
                        "TargetPort": 53
                    },
                    {
                        "Protocol": "tcp",
                        "PublishMode": "ingress",
                        "PublishedPort": 8080,
                        "TargetPort": 80
                    },
                    {
                        "Protocol": "tcp",
                        "PublishMode": "ingress",
                        "PublishedPort": 8443,
                        "TargetPort": 443
                    },
                    {
                        "Protocol": "tcp",
                        "PublishMode": "ingress",
                        "PublishedPort": 9000,
                        "TargetPort": 9000
                    }
                ]
            },
            "Labels": {
                "com.docker.stack.image": "registry.example/app:1",
                "com.docker.stack.namespace": "demo",
                "shoal.cdi-devices": "nvidia.com/gpu=0",
                "shoal.cgroup-parent": "/batch",
                "shoal.cgroupns": "private",
                "shoal.cpuset": "0-1",
                "shoal.depends-on": "demo_db:service_healthy,demo_migrate:service_completed_successfully,demo_cache:service_started:optional",
                "shoal.device-cgroup-rules": "c 1:3 mr",
                "shoal.devices": "/dev/fuse:/dev/fuse:rw,/dev/null:/dev/nothing:r",
                "shoal.domainname": "example.org",
                "shoal.ip": "the-front=10.9.0.10,the-front=fd00:9::10",
                "shoal.ipc": "private",
                "shoal.memory-swap": "1073741824",
                "shoal.memory-swappiness": "10",
                "shoal.oom-kill-disable": "true",
                "shoal.publish.443.host-ip": "127.0.0.1",
                "shoal.publish.9000.host-ip": "127.0.0.1",
                "shoal.security-opt": "no-new-privileges",
                "shoal.shm-size": "67108864",
                "shoal.userns": "host",
                "shoal.uts": "host",
                "tier": "front"
            },
            "Mode": {
                "Replicated": {
                    "Replicas": 3
                }
            },
            "Name": "demo_app",
            "RollbackConfig": {
                "Delay": 1000000000,
                "FailureAction": "pause",
                "MaxFailureRatio": 0.0,
                "Monitor": 3000000000,
                "Order": "stop-first",
                "Parallelism": 1
            },
            "TaskTemplate": {
                "ContainerSpec": {
                    "Args": [
                        "serve",
                        "--port",
                        "80"
                    ],
                    "CapabilityAdd": [
                        "CAP_NET_ADMIN"
                    ],
                    "CapabilityDrop": [
                        "CAP_CHOWN"
                    ],
                    "Command": [
                        "/init",
                        "--"
                    ],
                    "Configs": [
                        {
                            "ConfigName": "the-site",
                            "File": {
                                "GID": "0",
                                "Mode": 292,
                                "Name": "site",
                                "UID": "0"
                            }
                        },
                        {
                            "ConfigName": "the-site",
                            "File": {
                                "GID": "104",
                                "Mode": 288,
                                "Name": "/etc/other.conf",
                                "UID": "103"
                            }
                        }
                    ],
                    "DNSConfig": {
                        "Nameservers": [
                            "9.9.9.9",
                            "1.1.1.1"
                        ],
                        "Options": [
                            "use-vc"
                        ],
                        "Search": [
                            "example.org"
                        ]
                    },
                    "Dir": "/srv",
                    "Env": [
                        "BASE=yes",
                        "EMPTY=",
                        "LEVEL=info"
                    ],
                    "Groups": [
                        "mail"
                    ],
                    "Healthcheck": {
                        "Interval": 90000000000,
                        "Retries": 3,
                        "StartInterval": 5000000000,
                        "StartPeriod": 40000000000,
                        "Test": [
                            "CMD-SHELL",
                            "curl -f http://localhost"
                        ],
                        "Timeout": 10000000000
                    },
                    "Hostname": "{{.Service.Name}}-{{.Task.Slot}}",
                    "Hosts": [
                        "host-gateway host.docker.internal",
                        "192.0.2.1 somewhere"
                    ],
                    "Image": "registry.example/app:1",
                    "Init": true,
                    "Labels": {
                        "com.docker.stack.namespace": "demo",
                        "com.example.a": "b",
                        "from.file": "yes"
                    },
                    "Mounts": [
                        {
                            "Source": "the-data",
                            "Target": "/data",
                            "Type": "volume",
                            "VolumeOptions": {
                                "DriverConfig": {
                                    "Name": "local",
                                    "Options": {
                                        "device": "/srv/data",
                                        "o": "bind",
                                        "type": "none"
                                    }
                                },
                                "Labels": {
                                    "com.docker.stack.namespace": "demo",
                                    "of": "volume"
                                },
                                "NoCopy": true
                            }
                        },
                        {
                            "BindOptions": {
                                "CreateMountpoint": true
                            },
                            "ReadOnly": true,
                            "Source": "/site",
                            "Target": "/site",
                            "Type": "bind"
                        },
                        {
                            "Target": "/anonymous",
                            "Type": "volume"
                        },
                        {
                            "ReadOnly": true,
                            "Source": "the-data",
                            "Target": "/inner",
                            "Type": "volume",
                            "VolumeOptions": {
                                "DriverConfig": {
                                    "Name": "local",
                                    "Options": {
                                        "device": "/srv/data",
                                        "o": "bind",
                                        "type": "none"
                                    }
                                },
                                "Labels": {
                                    "com.docker.stack.namespace": "demo",
                                    "of": "mount"
                                },
                                "NoCopy": true,
                                "Subpath": "inner"
                            }
                        },
                        {
                            "BindOptions": {
                                "CreateMountpoint": true,
                                "NonRecursive": true,
                                "Propagation": "rslave"
                            },
                            "Source": "/srv",
                            "Target": "/srv",
                            "Type": "bind"
                        },
                        {
                            "Target": "/scratch",
                            "TmpfsOptions": {
                                "Mode": 1023,
                                "SizeBytes": 10485760
                            },
                            "Type": "tmpfs"
                        },
                        {
                            "Target": "/run",
                            "Type": "tmpfs"
                        },
                        {
                            "Target": "/tmp",
                            "TmpfsOptions": {
                                "Mode": 1023,
                                "Options": [
                                    [
                                        "uid",
                                        "1000"
                                    ],
                                    [
                                        "gid",
                                        "1000"
                                    ],
                                    [
                                        "exec"
                                    ]
                                ],
                                "SizeBytes": 67108864
                            },
                            "Type": "tmpfs"
                        }
                    ],
                    "OomScoreAdj": -100,
                    "OpenStdin": true,
                    "ReadOnly": true,
                    "Secrets": [
                        {
                            "File": {
                                "GID": "0",
                                "Mode": 292,
                                "Name": "key",
                                "UID": "0"
                            },
                            "SecretName": "the-key"
                        },
                        {
                            "File": {
                                "GID": "104",
                                "Mode": 256,
                                "Name": "other",
                                "UID": "103"
                            },
                            "SecretName": "the-key"
                        }
                    ],
                    "StopGracePeriod": 90000000000,
                    "StopSignal": "SIGUSR1",
                    "Sysctls": {
                        "net.core.somaxconn": "1024"
                    },
                    "TTY": true,
                    "Ulimits": [
                        {
                            "Hard": 40000,
                            "Name": "nofile",
                            "Soft": 20000
                        },
                        {
                            "Hard": 65535,
                            "Name": "nproc",
                            "Soft": 65535
                        }
                    ],
                    "User": "1000:1000"
                },
                "LogDriver": {
                    "Name": "json-file",
                    "Options": {
                        "max-size": "10m"
                    }
                },
                "Networks": [
                    {
                        "Aliases": [
                            "app"
                        ],
                        "Target": "demo_back"
                    },
                    {
                        "Aliases": [
                            "www",
                            "app"
                        ],
                        "DriverOpts": {
                            "com.example.opt": "x"
                        },
                        "Target": "the-front"
                    }
                ],
                "Placement": {
                    "Constraints": [
                        "node.role==worker",
                        "node.platform.os==linux",
                        "node.platform.arch==x86_64"
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
                        "MemoryBytes": 536870912,
                        "NanoCPUs": 1500000000,
                        "Pids": 200
                    },
                    "Reservations": {
                        "GenericResources": [
                            {
                                "DiscreteResourceSpec": {
                                    "Kind": "ssd",
                                    "Value": 2
                                }
                            }
                        ],
                        "MemoryBytes": 134217728,
                        "NanoCPUs": 250000000
                    }
                },
                "RestartPolicy": {
                    "Condition": "on-failure",
                    "Delay": 2000000000,
                    "MaxAttempts": 4,
                    "Window": 60000000000
                }
            },
            "UpdateConfig": {
                "Delay": 5000000000,
                "FailureAction": "rollback",
                "MaxFailureRatio": 0.2,
                "Monitor": 10000000000,
                "Order": "start-first",
                "Parallelism": 2
            }
        }"#]].assert_eq(&hide(&crate::output::indented(app)));
}
