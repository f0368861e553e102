//! The three files of `/etc` that the engine writes for a container.

use std::fmt::Write;
use std::net::IpAddr;

/// `/etc/hosts`: localhost, what the network says, what the user adds.
pub fn hosts(entries: &[(IpAddr, Vec<String>)]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    push_hosts(&mut text, entries);
    text
}

/// Lines at the end of a hosts file.
pub fn push_hosts(text: &mut String, entries: &[(IpAddr, Vec<String>)]) {
    for (address, names) in entries {
        writeln!(text, "{address}\t{}", names.join(" ")).expect("writing to a String cannot fail");
    }
}

/// A hosts file without the lines that [`push_hosts`] wrote for a host first called `name`.
pub fn without_host(text: &str, name: &str) -> String {
    let is_its = |line: &&str| {
        let names = line.split_once('\t').map(|(_, names)| names);
        names.and_then(|names| names.split(' ').next()) == Some(name)
    };
    let lines = text.split_inclusive('\n');
    lines.filter(|line| !is_its(&line.trim_end())).collect()
}

/// `name:address` or `name=address`; `host-gateway` stands for `gateway`. `None` when it is neither.
pub fn parse_extra_host(text: &str, gateway: Option<IpAddr>) -> Option<(IpAddr, Vec<String>)> {
    let (name, address) = text.split_once([':', '='])?;
    let address = match address {
        "host-gateway" => gateway?,
        literal => literal
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .ok()?,
    };
    (!name.is_empty()).then(|| (address, vec![name.to_owned()]))
}

/// `/etc/resolv.conf`: the host's, with every part replaced that is given.
pub fn resolv_conf(
    host: &str,
    nameservers: &[IpAddr],
    search: &[String],
    options: &[String],
) -> String {
    let lines = |keyword: &str| -> Vec<&str> {
        host.lines()
            .map(str::trim)
            .filter(|line| line.split_whitespace().next() == Some(keyword))
            .collect()
    };
    let mut text = String::new();
    let mut push = |own: Option<String>, keyword: &str| match own {
        Some(line) => text.push_str(&line),
        None => lines(keyword).iter().for_each(|line| {
            text.push_str(line);
            text.push('\n');
        }),
    };
    let servers: String = nameservers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    push((!nameservers.is_empty()).then_some(servers), "nameserver");
    // A lone dot means "no search domain", as in Docker.
    let searched = if search == ["."] {
        String::new()
    } else {
        format!("search {}\n", search.join(" "))
    };
    push((!search.is_empty()).then_some(searched), "search");
    push(
        (!options.is_empty()).then(|| format!("options {}\n", options.join(" "))),
        "options",
    );
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_host_goes_by_its_first_name() {
        let address = "172.17.0.2".parse().unwrap();
        let mut text = hosts(&[]);
        push_hosts(&mut text, &[(address, vec!["app".into(), "db".into()])]);
        let before = text.clone();
        push_hosts(&mut text, &[(address, vec!["db".into(), "web".into()])]);
        assert_eq!(without_host(&text, "db"), before);
    }

    #[test]
    fn given_parts_replace_the_hosts() {
        let host = "# by somebody\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch example.org\noptions rotate\n";
        expect![[r#"
            nameserver 10.0.0.1
            nameserver 10.0.0.2
            search example.org
            options rotate
        "#]]
        .assert_eq(&resolv_conf(host, &[], &[], &[]));
        expect![[r#"
            nameserver 127.0.0.11
            options ndots:0
        "#]]
        .assert_eq(&resolv_conf(
            host,
            &["127.0.0.11".parse().expect("address")],
            &[".".into()],
            &["ndots:0".into()],
        ));
    }

    #[test]
    fn extra_hosts_have_two_forms() {
        let gateway = "172.17.0.1".parse().ok();
        let parsed = [
            "a:1.2.3.4",
            "b=::1",
            "c:[::2]",
            "d:host-gateway",
            "e:nonsense",
            ":1.2.3.4",
        ]
        .map(|text| {
            parse_extra_host(text, gateway)
                .map(|(address, names)| format!("{address} {}", names[0]))
        });
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            parsed,
            [
                text("1.2.3.4 a"),
                text("::1 b"),
                text("::2 c"),
                text("172.17.0.1 d"),
                None,
                None
            ]
        );
    }
}
