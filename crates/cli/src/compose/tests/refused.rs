//! What a stack's services do not have.

use super::*;

#[test]
fn what_services_do_not_have_is_refused_in_its_place() {
    for (mount, problem) in [
        (
            "{type: image, source: a, target: /a}",
            "demo.yml:4: services.web.volumes[0].type cannot be image in a stack: images are mounted in single containers alone",
        ),
        (
            "{type: cluster, source: a, target: /a}",
            "demo.yml:4: services.web.volumes[0].type cannot be cluster in a stack: there are no volumes of the cluster",
        ),
        (
            "{type: npipe, source: a, target: /a}",
            "demo.yml:4: services.web.volumes[0].type cannot be npipe in a stack: named pipes are of Windows",
        ),
    ] {
        let text = format!("services:\n  web:\n    image: a\n    volumes: [{mount}]\n");
        assert_eq!(stack(&text).unwrap_err().to_string(), problem);
    }
    for (volume, problem) in [
        (
            "'v:/v:rslave'",
            "demo.yml:4: services.web.volumes[0] has a propagation, which only a path of the host can have",
        ),
        (
            "{type: bind, source: /a, target: /a, bind: {recursive: writable}}",
            "demo.yml:4: services.web.volumes[0].bind.recursive cannot be writable without read_only",
        ),
    ] {
        let text = format!(
            "services:\n  web:\n    image: a\n    volumes: [{volume}]\nvolumes: {{v: {{}}}}\n"
        );
        assert_eq!(stack(&text).unwrap_err().to_string(), problem);
    }
    let text = "services:\n  web:\n    image: a\n    tmpfs: '/run:uid=somebody'\n";
    assert_eq!(
        stack(text).unwrap_err().to_string(),
        "demo.yml:4: services.web.tmpfs has an unknown option \"uid=somebody\""
    );
}
