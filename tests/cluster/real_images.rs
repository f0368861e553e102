//! nginx, redis and a Python program out of Debian's packages, from a registry with a password, on three hosts.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};
use shoal_tests::{
    images::{Image, Layer, Registry, debian, save},
    lab::{Place, TestLab, get, program, text},
    wait,
};

/// Counts its calls in redis and tells the address of its caller's caller.
const APP: &str = r#"
import http.server, os, socket

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with socket.create_connection(("redis", 6379), 5) as redis:
            redis.sendall(b"INCR calls\r\n")
            calls = redis.recv(64).decode().strip().lstrip(":")
        body = f"calls={calls} app={os.environ['TASK']} client={self.headers['X-Real-IP']}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"#;

const NGINX: &str = "
daemon off;
error_log stderr;
pid /run/nginx.pid;
events {}
http {
    access_log off;
    server {
        listen 80;
        location / {
            resolver 127.0.0.11 valid=1s;
            set $app http://app:8000;
            proxy_pass $app;
            proxy_set_header X-Real-IP $remote_addr;
        }
    }
}
";

/// Makes the three images and packs them into one archive.
fn make_images(registry: &str, folder: &Path) -> Result<std::path::PathBuf> {
    let root = folder.join("debian");
    debian("nginx-light,python3,redis-server", &root)?;
    let base = Layer::pack(&root, &folder.join("base.tar"))?;
    fs::remove_dir_all(&root)?;

    let app = folder.join("app");
    fs::create_dir_all(app.join("srv"))?;
    fs::write(app.join("srv/app.py"), APP)?;
    let app = Layer::pack(&app, &folder.join("app.tar"))?;
    let nginx = folder.join("nginx");
    fs::create_dir_all(nginx.join("etc/nginx"))?;
    fs::write(nginx.join("etc/nginx/nginx.conf"), NGINX)?;
    let nginx = Layer::pack(&nginx, &folder.join("nginx.tar"))?;

    let archive = folder.join("images.tar");
    let images = [
        Image {
            name: format!("{registry}/nginx:1"),
            layers: vec![&base, &nginx],
            entrypoint: &["nginx"],
        },
        Image {
            name: format!("{registry}/app:1"),
            layers: vec![&base, &app],
            entrypoint: &["python3", "-u", "/srv/app.py"],
        },
        Image {
            name: format!("{registry}/redis:1"),
            layers: vec![&base],
            entrypoint: &["redis-server", "--protected-mode", "no", "--save", ""],
        },
    ];
    save(&images, folder, &archive)?;
    Ok(archive)
}

#[test]
fn a_stack_of_debian_images_is_pulled_by_digest_and_answers() -> Result<()> {
    let place = Place::take();
    let registry_addr = format!("{}:5000", place.machine());
    let lab = TestLab::up_in(
        place,
        program(),
        (3, 1),
        &[
            "--daemon-arg",
            &format!("--insecure-registry={registry_addr}"),
        ],
    )?;
    let registry = Registry::start(&registry_addr)?;
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let archive = make_images(&registry_addr, folder.path())?;
    let credentials = format!("DOCKER_CONFIG={}", registry.credentials()?.display());
    let shoal = program();
    let with_credentials = |words: &[&str]| -> Result<String> {
        let mut all = vec![
            "env",
            credentials.as_str(),
            shoal.to_str().context("a path that is not UTF-8")?,
        ];
        all.extend(words);
        text(&lab.output("n1", &all)?).with_context(|| words.join(" "))
    };

    lab.on("n1", &["load", "-q", "-i", &archive.to_string_lossy()])?;
    fs::remove_file(&archive)?;
    for name in ["nginx", "app", "redis"] {
        let image = format!("{registry_addr}/{name}:1");
        let (_, said) = lab.refused("n1", &["push", &image])?;
        assert!(
            said.contains("no basic auth credentials") || said.contains("denied"),
            "{said}"
        );
        with_credentials(&["push", &image])?;
        lab.on("n1", &["rmi", &image])?;
    }
    assert_eq!(
        lab.on("n1", &["images", "-q", &format!("{registry_addr}/app")])?,
        ""
    );
    let (_, said) = lab.refused("n1", &["pull", &format!("{registry_addr}/app:1")])?;
    assert!(
        said.contains("no basic auth credentials") || said.contains("denied"),
        "{said}"
    );
    let missing = format!("{registry_addr}/app:2");
    let said = with_credentials(&["pull", &missing]).unwrap_err();
    assert!(
        format!("{said:#}").contains(&format!("manifest for {missing} not found")),
        "{said:#}"
    );

    let file = folder.path().join("stack.yml");
    fs::write(
        &file,
        format!(
            "services:\n\
             \x20 web:\n    image: {registry_addr}/nginx:1\n    ports: ['8080:80']\n    deploy: {{replicas: 3}}\n\
             \x20 app:\n    image: {registry_addr}/app:1\n    deploy: {{replicas: 3}}\n\
             \x20   environment:\n      TASK: 'app.{{{{.Task.Slot}}}}'\n\
             \x20 redis:\n    image: {registry_addr}/redis:1\n"
        ),
    )?;
    with_credentials(&[
        "stack",
        "deploy",
        "--detach",
        "--with-registry-auth",
        "-c",
        &file.to_string_lossy(),
        "shop",
    ])?;
    lab.wait_running("shop_redis", 1)?;
    let web = lab.wait_running("shop_web", 3)?;
    lab.wait_running("shop_app", 3)?;
    assert_eq!(
        web.iter()
            .map(|(_, node)| node.as_str())
            .collect::<BTreeSet<_>>()
            .len(),
        3,
        "{web:?}"
    );
    let pinned = lab.on(
        "n1",
        &[
            "service",
            "inspect",
            "--format",
            "{{.Spec.TaskTemplate.ContainerSpec.Image}}",
            "shop_app",
        ],
    )?;
    assert!(pinned.contains("/app:1@sha256:"), "{pinned}");

    for host in ["n1", "n2", "n3"] {
        let mut seen = BTreeSet::new();
        wait(&format!("every app to answer through {host}"), || {
            let body = get(&lab.addr(host), 8080, "/")?;
            if !body.contains(&format!("client={}", lab.machine())) {
                return Ok(Err(body));
            }
            seen.extend(body.split_whitespace().nth(1).map(str::to_owned));
            Ok(if seen.len() == 3 { Ok(()) } else { Err(body) })
        })?;
    }

    // What a tag means changes: services keep their digests until somebody asks for what it means now.
    let (nginx, app) = (
        format!("{registry_addr}/nginx:1"),
        format!("{registry_addr}/app:1"),
    );
    with_credentials(&["pull", "-q", &nginx])?;
    lab.on("n1", &["tag", &nginx, &app])?;
    with_credentials(&["push", &app])?;
    let file_name = file.to_string_lossy().into_owned();
    let plan = |resolve: &str| {
        let words = ["stack", "plan", "--resolve-image", resolve, "-c"];
        with_credentials(&[&words[..], &[&file_name, "shop"]].concat())
    };
    for resolve in ["never", "changed"] {
        let said = plan(resolve)?;
        assert!(
            said.contains("0 to create, 0 to update, 0 to remove"),
            "{said}"
        );
    }
    let said = plan("always")?;
    assert!(
        said.contains("~ service shop_app\n    TaskTemplate.ContainerSpec.Image: ")
            && said.contains("1 to update"),
        "{said}"
    );

    // A node asks again what a name means that it has already only where it is told to.
    lab.on("n1", &["tag", pinned.trim(), &app])?;
    let id = |image: &str| {
        let words = ["image", "inspect", "--format", "{{.Id}}", image];
        lab.on("n1", &words)
    };
    let (old, new) = (id(&app)?, id(&nginx)?);
    assert_ne!(old, new);
    let create = "service create -q --detach --no-resolve-image --with-registry-auth --constraint node.hostname==n1";
    let create: Vec<&str> = create.split(' ').collect();
    for (policy, want) in [("missing", &old), ("always", &new)] {
        let label = format!("shoal.pull-policy={policy}");
        let more = ["--entrypoint", "sleep 100000", "--name", policy];
        let words = [&create[..], &more, &["--label", &label, &app]].concat();
        with_credentials(&words)?;
        lab.wait_running(policy, 1)?;
        let filter = format!("label=com.docker.swarm.service.name={policy}");
        let container = lab.on("n1", &["ps", "-q", "--filter", &filter])?;
        let words = ["inspect", "--format", "{{.Image}}", container.trim()];
        assert_eq!(lab.on("n1", &words)?, *want, "{policy}");
        lab.on("n1", &["service", "rm", policy])?;
    }

    // The cluster keeps the credentials: a host that never had the image gets it when its turn comes.
    let redis = format!("{registry_addr}/redis");
    let home = lab.wait_running("shop_redis", 1)?.remove(0).1;
    for host in ["n1", "n2", "n3"].into_iter().filter(|host| *host != home) {
        assert_eq!(lab.on(host, &["images", "-q", &redis])?, "", "{host}");
    }
    lab.on("n1", &["node", "update", "--availability", "drain", &home])?;
    wait("the service to run elsewhere", || {
        let now = lab.wait_running("shop_redis", 1)?.remove(0).1;
        Ok(if now != home { Ok(()) } else { Err(now) })
    })?;
    lab.on("n1", &["node", "update", "--availability", "active", &home])?;
    // An image that its registry does not know is refused before anything is made, or changed.
    let inspect = ["service", "inspect", "shop_redis"];
    let before = lab.on("n1", &inspect)?;
    let words = [
        "service",
        "update",
        "--detach",
        "--image",
        &missing,
        "shop_redis",
    ];
    let said = format!("{:#}", with_credentials(&words).unwrap_err());
    assert!(
        said.contains(&format!("image {missing} does not exist")),
        "{said}"
    );
    assert_eq!(lab.on("n1", &inspect)?, before);
    lab.on("n1", &["stack", "rm", "shop"])?;
    let said = with_credentials(&["service", "create", "--detach", "--name", "none", &missing]);
    let said = format!("{:#}", said.unwrap_err());
    assert!(
        said.contains(&format!("image {missing} does not exist")),
        "{said}"
    );
    fs::write(
        &file,
        format!(
            "services:\n\x20 web:\n    image: {registry_addr}/nginx:1\n\x20 none:\n    image: {missing}\n"
        ),
    )?;
    for (verb, resolve) in [
        ("plan", "always"),
        ("plan", "changed"),
        ("deploy", "always"),
        ("deploy", "changed"),
    ] {
        let file = file.to_string_lossy();
        let words = [
            "stack",
            verb,
            "--resolve-image",
            resolve,
            "-c",
            &file,
            "none",
        ];
        let said = format!("{:#}", with_credentials(&words).unwrap_err());
        assert!(
            said.contains(&format!("image {missing} does not exist")),
            "{said}"
        );
    }
    assert_eq!(lab.on("n1", &["service", "ls", "-q"])?, "");
    assert!(!lab.on("n1", &["network", "ls"])?.contains("none_default"));
    Ok(())
}
