use super::*;

const NOW: Timestamp = Timestamp(7);

pub(super) fn id_of(name: &str) -> ImageId {
    ImageId::from(&Digest::of(name.as_bytes()))
}

pub(super) fn row(layers: &[&str]) -> ImageRow {
    let layer = |name: &&str| Layer {
        diff_id: Digest::of(name.as_bytes()),
        chain_id: Digest::of(name.as_bytes()),
        blob: Descriptor::new("", Digest::of(name.as_bytes()), 1),
        size: 10,
    };
    ImageRow {
        manifest: Descriptor::new("", Digest::of(b"manifest"), 1),
        config_size: 1,
        spec: ImageSpec::default(),
        layers: layers.iter().map(layer).collect(),
        last_tagged: NOW,
        built: None,
        unsynced: None,
    }
}

/// Image `a` with tag and digest of `repo`, image `b` without a name; both stand on layer `base`.
fn catalog() -> Catalog {
    let mut catalog = Catalog::default();
    catalog.insert(id_of("a"), row(&["base", "top"]));
    catalog.insert(id_of("b"), row(&["base"]));
    catalog.name("repo:1".parse().unwrap(), &id_of("a"), NOW);
    let digest = Digest::of(b"index");
    catalog.name(
        "repo:1".parse::<Reference>().unwrap().at(digest),
        &id_of("a"),
        NOW,
    );
    catalog
}

fn user(image: &str, running: bool) -> ImageUser {
    ImageUser {
        image: id_of(image),
        container: "c0ffee0c0ffee0".into(),
        running,
    }
}

fn removed(
    catalog: &mut Catalog,
    name: &str,
    force: bool,
    users: &[ImageUser],
) -> Result<Vec<String>, String> {
    let plan = catalog
        .remove(name, force, users)
        .map_err(|error| error.to_string())?;
    let short = |text: &str| text.chars().take(30).collect::<String>();
    Ok(plan
        .removed
        .iter()
        .map(|removed| match removed {
            ImageRemoved::Untagged(name) => format!("- {}", short(name)),
            ImageRemoved::Deleted(id) => format!("x {}", short(id)),
        })
        .collect())
}

#[test]
fn images_are_found_by_every_kind_of_name() {
    let catalog = catalog();
    let a = id_of("a");
    let digest = Digest::of(b"index");
    for name in [
        a.to_string(),
        a.hex().to_owned(),
        a.short().to_owned(),
        "repo:1".into(),
        format!("repo@{digest}"),
        format!("repo:9@{digest}"),
        "docker.io/library/repo:1".into(),
    ] {
        assert_eq!(catalog.resolve(&name), Ok(&a), "{name}");
    }
    assert_eq!(
        catalog.resolve("nosuch").unwrap_err().to_string(),
        "No such image: nosuch:latest"
    );
    assert_eq!(
        catalog.resolve("repo").unwrap_err().to_string(),
        "No such image: repo:latest"
    );
    assert_eq!(
        catalog.resolve("a b").unwrap_err().to_string(),
        "invalid reference format"
    );
}

#[test]
fn removing_the_last_tag_removes_the_image_and_the_layers_nobody_else_needs() {
    let mut catalog = catalog();
    let records = removed(&mut catalog, "repo:1", false, &[]).unwrap();
    let short = |name: &str| format!("x sha256:{}", &Digest::of(name.as_bytes()).hex()[..23]);
    assert_eq!(
        records,
        [
            "- repo:1",
            &format!("- repo@sha256:{}", &Digest::of(b"index").hex()[..18]),
            &short("a"),
            &short("top")
        ]
    );
    assert!(
        catalog.resolve(id_of("a").hex()).is_err() && catalog.resolve(id_of("b").hex()).is_ok()
    );
}

#[test]
fn a_second_tag_keeps_the_image() {
    let mut catalog = catalog();
    catalog.tag("repo:1", "other", NOW).unwrap();
    let refused = removed(&mut catalog, id_of("a").short(), false, &[]).unwrap_err();
    assert_eq!(
        refused,
        format!(
            "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
            id_of("a").short()
        )
    );
    assert_eq!(
        removed(&mut catalog, "other", false, &[]).unwrap(),
        ["- other:latest"]
    );
    catalog.tag("repo:1", "other", NOW).unwrap();
    assert_eq!(
        removed(&mut catalog, id_of("a").short(), true, &[])
            .unwrap()
            .len(),
        5
    );
}

#[test]
fn containers_hold_their_image() {
    let mut catalog = catalog();
    let before = catalog.clone();
    let a = id_of("a");
    let check = |catalog: &mut Catalog, name: &str, force, running, expected: &str| {
        assert_eq!(
            removed(catalog, name, force, &[user("a", running)]).unwrap_err(),
            format!("conflict: unable to {expected}")
        );
        assert_eq!(*catalog, before);
    };
    check(
        &mut catalog,
        "repo:1",
        false,
        false,
        &format!(
            "remove repository reference \"repo:1\" (must force) - container c0ffee0c0ffe is using its referenced image {}",
            a.short()
        ),
    );
    check(
        &mut catalog,
        a.hex(),
        false,
        false,
        &format!(
            "delete {} (must be forced) - image is being used by stopped container c0ffee0c0ffe",
            a.short()
        ),
    );
    check(
        &mut catalog,
        a.hex(),
        true,
        true,
        &format!(
            "delete {} (cannot be forced) - image is being used by running container c0ffee0c0ffe",
            a.short()
        ),
    );
    // By name and by force the name goes and the image stays for its container.
    assert_eq!(
        removed(&mut catalog, "repo:1", true, &[user("a", true)])
            .unwrap()
            .len(),
        2
    );
    assert!(catalog.resolve(a.hex()).is_ok());
}

#[test]
fn a_moved_tag_leaves_its_former_image_nameless() {
    let mut catalog = catalog();
    catalog.tag(id_of("b").hex(), "repo:1", NOW).unwrap();
    assert_eq!(catalog.resolve("repo:1"), Ok(&id_of("b")));
    assert_eq!(catalog.names(&id_of("a")).0, []);
    let json = serde_json::to_string(&catalog).unwrap();
    assert_eq!(serde_json::from_str::<Catalog>(&json).unwrap(), catalog);
}

#[test]
fn history_gives_each_step_its_layer() {
    let mut catalog = catalog();
    let mut with_steps = row(&["base", "top"]);
    let step = |by: &str, empty_layer| super::super::config::BuildStep {
        created_by: by.into(),
        empty_layer,
        ..Default::default()
    };
    with_steps.spec.history = vec![step("ADD", false), step("ENV", true), step("COPY", false)];
    catalog.insert(id_of("a"), with_steps);
    let rows = catalog.history("repo:1").unwrap();
    let seen: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row.created_by.as_str(),
                row.size,
                row.id.is_some(),
                row.tags.len(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("COPY", 10, true, 1),
            ("ENV", 0, false, 0),
            ("ADD", 10, false, 0)
        ]
    );
}

#[test]
fn a_stopped_container_keeps_its_layers_whatever_is_forced() {
    let mut catalog = catalog();
    let a = id_of("a");
    let gone = removed(&mut catalog, a.hex(), true, &[user("a", false)]).unwrap();
    assert_eq!(gone.len(), 2);
    assert!(catalog.resolve("repo:1").is_err() && catalog.resolve(a.hex()).is_ok());
}

#[test]
fn prune_takes_what_is_chosen_and_unused() {
    let mut catalog = catalog();
    let (none, bytes) = catalog.prune(|_| true, &[user("a", false), user("b", true)]);
    assert_eq!((none.len(), bytes), (0, 0));
    let (dangling, bytes) = catalog.prune(|image| image.repo_tags.is_empty(), &[]);
    assert_eq!(
        (dangling, bytes),
        (vec![ImageRemoved::Deleted(id_of("b").to_string())], 0)
    );
    let (rest, bytes) = catalog.prune(|_| true, &[]);
    assert_eq!((rest.len(), bytes), (5, 20));
    assert_eq!(catalog, Catalog::default());
}

#[test]
fn images_that_a_power_cut_took_are_gone_with_their_names() {
    let mut catalog = catalog();
    let mut fresh = row(&["base", "top"]);
    fresh.unsynced = Some("boot-1".into());
    // What is on the disk already is not in danger again.
    catalog.insert(id_of("a"), fresh.clone());
    assert_eq!(catalog.unsynced().count(), 0);
    catalog.insert(id_of("c"), fresh.clone());
    catalog.name("fresh:1".parse().unwrap(), &id_of("c"), NOW);
    let before = catalog.clone();
    assert_eq!(catalog.drop_unsynced("boot-1"), []);
    assert_eq!(catalog, before);
    catalog.synced(&[id_of("c")]);
    assert_eq!(catalog.drop_unsynced("boot-2"), []);
    catalog = before;
    assert_eq!(catalog.drop_unsynced("boot-2"), [id_of("c")]);
    assert!(catalog.resolve("fresh:1").is_err() && catalog.get(&id_of("a")).is_some());
}
