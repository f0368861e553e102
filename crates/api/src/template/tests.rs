use serde_json::json;

use super::*;

fn render(template: &str) -> String {
    let value = json!({
        "Name": "web", "Ports": ["80", "443"], "Nothing": null, "On": true, "Labels": "a=b,tier=front",
        "Spec": {"Replicas": 3, "Ratio": 0.5, "Env": {"B": "2", "A": "1"}},
        "Mounts": [{"Source": "/a"}, {"Source": "/b"}],
    });
    match Template::parse(template).and_then(|template| template.render(&value, Missing::NoValue)) {
        Ok(text) => text,
        Err(error) => error.to_string(),
    }
}

#[test]
fn values_are_printed_as_go_prints_them() {
    assert_eq!(
        render("{{.Name}} {{.Spec.Replicas}} {{.Spec.Ratio}} {{.On}}"),
        "web 3 0.5 true"
    );
    assert_eq!(render("{{.Ports}} {{.Spec.Env}}"), "[80 443] map[A:1 B:2]");
    assert_eq!(
        render("{{.Nothing}} {{.Missing}} {{.Spec.No.Deeper}}"),
        "<no value> <no value> <no value>"
    );
    assert_eq!(
        render("{{json .Spec.Env}} {{json .Name}}"),
        r#"{"A":"1","B":"2"} "web""#
    );
}

#[test]
fn control_structures_nest() {
    assert_eq!(render("{{range .Ports}}[{{.}}]{{end}}"), "[80][443]");
    assert_eq!(
        render("{{range $i, $m := .Mounts}}{{if $i}}, {{end}}{{$i}}={{$m.Source}}{{end}}"),
        "0=/a, 1=/b"
    );
    assert_eq!(
        render("{{range $k, $v := .Spec.Env}}{{$k}}={{$v}} {{end}}"),
        "A=1 B=2 "
    );
    assert_eq!(render("{{range .Nothing}}x{{else}}none{{end}}"), "none");
    assert_eq!(
        render("{{if and .On (eq .Spec.Replicas 3)}}three{{else}}other{{end}}"),
        "three"
    );
    assert_eq!(
        render("{{if .Nothing}}a{{else if eq .Name \"web\"}}b{{else}}c{{end}}"),
        "b"
    );
    assert_eq!(
        render("{{with .Spec}}{{.Replicas}} {{$.Name}}{{end}}"),
        "3 web"
    );
    assert_eq!(render("{{$x := .Name}}{{$x = upper $x}}{{$x}}"), "WEB");
    assert_eq!(render("a {{- /* gone */ -}} b"), "ab");
    assert_eq!(
        render("{{range .Ports}}{{if eq . \"443\"}}{{break}}{{end}}{{.}}{{end}}"),
        "80"
    );
}

#[test]
fn functions_and_pipes() {
    assert_eq!(
        render("{{join .Ports \", \"}} {{.Name | title | printf \"%-5s|\"}}"),
        "80, 443 Web  |"
    );
    assert_eq!(
        render("{{index .Ports 1}} {{len .Ports}} {{(index .Mounts 0).Source}}"),
        "443 2 /a"
    );
    assert_eq!(
        render("{{index (split \"a:b\" \":\") 1}} {{truncate .Name 2}} {{pad .Name 1 2}}|"),
        "b we  web  |"
    );
    assert_eq!(
        render("{{printf \"%d %q %.2f %v%%\" .Spec.Replicas .Name .Spec.Ratio .On}}"),
        "3 \"web\" 0.50 true%"
    );
    assert_eq!(
        render(
            "{{lt 1 2}} {{ge .Spec.Replicas 3}} {{ne .Name \"db\"}} {{not .On}} {{or .Nothing .Name}}"
        ),
        "true true true false web"
    );
    assert_eq!(
        render("{{.Label \"tier\"}} {{`raw\"`}} {{slice .Name 1}} {{println 1 .Name}}"),
        "front raw\" eb 1 web\n"
    );
}

#[test]
fn what_is_no_template_is_refused() {
    for text in [
        "{{",
        "{{.Name",
        "{{end}}",
        "{{if .On}}",
        "{{range}}x{{end}}",
        "{{nosuch .Name}}",
        "{{\"a}}",
        "{{.Name | }}",
        "{{else}}",
        "{{)}}",
        "{{index .Ports}}",
    ] {
        let said = render(text);
        assert!(said.starts_with("template"), "{text}: {said}");
    }
    assert!(render("{{index .Ports 9}}").contains("out of range"));
    assert!(render(&"{{(".repeat(10_000)).starts_with("template"));
    let row = json!({"Name": "web"});
    let error = Template::parse("{{.Nam}}")
        .unwrap()
        .render(&row, Missing::ErrorAtTop)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "template: can't evaluate field Nam: there are Name"
    );
}
