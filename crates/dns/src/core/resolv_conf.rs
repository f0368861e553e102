//! What a container's `/etc/resolv.conf` says, and whom its resolver asks, given the host's file and the user's wishes.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use shoal_api::network::RESOLVER;

/// Port of DNS servers.
pub const DNS_PORT: u16 = 53;
/// Upstream servers that are used, as docker does; glibc knows no more than three either (resolv.conf(5), MAXNS).
pub const UPSTREAMS_MAX: usize = 3;

/// A parsed resolv.conf(5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Servers, those with an unreadable address left out.
    pub nameservers: Vec<SocketAddr>,
    /// Domains to try; of several lines the last counts.
    pub search: Vec<String>,
    /// Options of all lines.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads the file. Nothing in it is an error: what is not understood is passed over, as the C library does.
    pub fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => parsed
                    .nameservers
                    .extend(words.next().and_then(parse_server)),
                Some("search" | "domain") => parsed.search = words.map(str::to_owned).collect(),
                Some("options") => parsed.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        parsed
    }

    /// Dots that a name must have to be asked for as it is before the search domains are tried; 1 if the file does not
    /// say, and never more than 15, as in the C library.
    pub fn ndots(&self) -> u32 {
        let said = self.options.iter().rev();
        let said = said.filter_map(|option| option.strip_prefix("ndots:")?.parse().ok());
        said.map(|dots: u32| dots.min(15)).next().unwrap_or(1)
    }
}

/// Reads an address with an optional numeric zone, `fe80::1%2`.
fn parse_server(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, DNS_PORT));
    }
    let (address, zone) = text.split_once('%')?;
    Some(SocketAddrV6::new(address.parse().ok()?, DNS_PORT, 0, zone.parse().ok()?).into())
}

/// What the user asked for: `--dns`, `--dns-search`, `--dns-option`. Empty means as the host has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Upstream servers.
    pub nameservers: Vec<IpAddr>,
    /// Search domains; a single `.` means none.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// What one container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerResolvConf {
    /// Text of its `/etc/resolv.conf`.
    pub text: String,
    /// Servers to which its resolver forwards, from the host's namespace: a stub on the host's loopback, such as
    /// systemd-resolved's 127.0.0.53, can be reached from nowhere else.
    pub upstreams: Vec<SocketAddr>,
}

/// Derives a container's file from the host's.
///
/// Its only server is ours, and `ndots:0` has names without a dot tried as they are first, unless the host or the user
/// says otherwise. Rules and file format as docker's.
pub fn for_container(host: &ResolvConf, user: &Overrides) -> ContainerResolvConf {
    let search = if user.search.is_empty() {
        &host.search
    } else {
        &user.search
    };
    let options = if user.options.is_empty() {
        &host.options
    } else {
        &user.options
    };
    let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0");
    }

    let mut text = format!("nameserver {RESOLVER}\n");
    if !search.is_empty() && search[..] != ["."] {
        text += &format!("search {}\n", search.join(" "));
    }
    text += &format!("options {}\n", options.join(" "));

    let mut upstreams: Vec<SocketAddr> = user
        .nameservers
        .iter()
        .map(|address| SocketAddr::new(*address, DNS_PORT))
        .collect();
    if upstreams.is_empty() {
        upstreams.clone_from(&host.nameservers);
    }
    upstreams.truncate(UPSTREAMS_MAX);
    ContainerResolvConf { text, upstreams }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[test]
    fn the_last_ndots_counts() {
        let said = |text| ResolvConf::parse(text).ndots();
        assert_eq!(said("nameserver 10.0.0.1\n"), 1);
        assert_eq!(said("options ndots:0\n"), 0);
        assert_eq!(said("options ndots:2 edns0\noptions ndots:5\n"), 5);
        assert_eq!(said("options ndots:99\noptions ndots:x\n"), 15);
    }

    fn check(host: &str, user: &Overrides, expected: &Expect) {
        let made = for_container(&ResolvConf::parse(host), user);
        expected.assert_eq(&format!("{}→ {:?}\n", made.text, made.upstreams));
    }

    #[test]
    fn a_host_with_a_stub_on_its_loopback() {
        check(
            "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan example.org ; home\n",
            &Overrides::default(),
            &expect![[r#"
                nameserver 127.0.0.11
                search lan example.org
                options edns0 trust-ad ndots:0
                → [127.0.0.53:53]
            "#]],
        );
    }

    #[test]
    fn at_most_three_servers_and_only_readable_ones() {
        check(
            "nameserver 10.0.0.1\nnameserver nonsense\nnameserver fe80::1%2\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n\
             options ndots:2\ndomain old\nsearch new\n",
            &Overrides::default(),
            &expect![[r#"
                nameserver 127.0.0.11
                search new
                options ndots:2
                → [10.0.0.1:53, [fe80::1%2]:53, 10.0.0.2:53]
            "#]],
        );
    }

    #[test]
    fn the_user_s_wishes_come_first() {
        let user = Overrides {
            nameservers: vec!["1.1.1.1".parse().expect("an address")],
            search: vec![".".to_owned()],
            options: vec!["ndots:5".to_owned(), "rotate".to_owned()],
        };
        check(
            "nameserver 10.0.0.1\nsearch lan\noptions edns0\n",
            &user,
            &expect![[r#"
                nameserver 127.0.0.11
                options ndots:5 rotate
                → [1.1.1.1:53]
            "#]],
        );
    }

    #[test]
    fn an_empty_file_gives_a_resolver_without_upstreams() {
        check(
            "",
            &Overrides::default(),
            &expect![[r#"
                nameserver 127.0.0.11
                options ndots:0
                → []
            "#]],
        );
    }
}
