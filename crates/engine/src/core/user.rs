//! Who a container's process runs as: `USER` resolved in the container's own account files.
//!
//! The files come from the image, so they are text of bounded size and nothing else; the host's name services are
//! never asked (CVE-2019-14271). Numbers beyond 2^31-1 are refused, so that none wraps round to root (CVE-2024-40635).

/// Most bytes read of an account file.
pub const ACCOUNT_FILE_MAX: u64 = 4 << 20;
const ID_MAX: u32 = i32::MAX as u32;

/// The outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, without duplicates, in the order found.
    pub groups: Vec<u32>,
    /// `/` when the user has no entry.
    pub home: String,
}

/// The text names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("uids and gids must be in range 0-{ID_MAX}")]
    OutOfRange,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Resolves `user`, `uid`, `user:group` and so on; the empty text is root.
///
/// As in Docker: a number without an entry is accepted with group 0 and no supplementary groups; an explicit group
/// leaves the user's supplementary groups out; `group_add` is always added.
pub fn resolve(
    user: &str,
    group_add: &[String],
    passwd: &str,
    group: &str,
) -> Result<ResolvedUser, UserError> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = numeric(user)?;
    let account = accounts(passwd)
        .find(|account| account.name == user)
        .or_else(|| accounts(passwd).find(|account| Some(account.uid) == number));
    let mut resolved = match (&account, number) {
        (Some(account), _) => {
            let home = if account.home.is_empty() {
                "/"
            } else {
                account.home
            };
            ResolvedUser {
                uid: account.uid,
                gid: account.gid,
                groups: Vec::new(),
                home: home.to_owned(),
            }
        }
        (None, Some(uid)) => ResolvedUser {
            uid,
            gid: 0,
            groups: Vec::new(),
            home: "/".to_owned(),
        },
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    match (wanted_group, &account) {
        (Some(wanted), _) => resolved.gid = find_group(wanted, group)?,
        (None, Some(account)) => {
            let member =
                |entry: &Group<'_>| entry.members.split(',').any(|name| name == account.name);
            resolved
                .groups
                .extend(groups(group).filter(member).map(|entry| entry.gid));
        }
        (None, None) => {}
    }
    for wanted in group_add {
        resolved.groups.push(find_group(wanted, group)?);
    }
    let mut seen = std::collections::BTreeSet::new();
    resolved.groups.retain(|gid| seen.insert(*gid));
    if resolved.uid > ID_MAX
        || resolved.gid > ID_MAX
        || resolved.groups.iter().any(|gid| *gid > ID_MAX)
    {
        return Err(UserError::OutOfRange);
    }
    Ok(resolved)
}

fn find_group(wanted: &str, group: &str) -> Result<u32, UserError> {
    let number = numeric(wanted)?;
    groups(group)
        .find(|entry| entry.name == wanted)
        .map(|entry| entry.gid)
        .or(number)
        .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

fn numeric(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= ID_MAX => Ok(Some(id)),
        _ => Err(UserError::OutOfRange),
    }
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account {
            name,
            uid,
            gid,
            home: fields.nth(1).unwrap_or_default(),
        })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/false\n7:x:8:9::/seven:\nbad\nbig:x:4294967294:0::/:\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nadm:x:4:root,www\nssl:x:44:www,www\n";

    fn check(user: &str, add: &[&str], expect: Expect) {
        let add: Vec<String> = add.iter().map(|&s| s.to_owned()).collect();
        let text = match resolve(user, &add, PASSWD, GROUP) {
            Ok(user) => format!("{}:{} {:?} {}", user.uid, user.gid, user.groups, user.home),
            Err(err) => err.to_string(),
        };
        expect.assert_eq(&text);
    }

    #[test]
    fn names_numbers_and_groups_resolve_as_in_docker() {
        check("", &[], expect!["0:0 [4] /root"]);
        check("www", &[], expect!["33:33 [4, 44] /var/www"]);
        check("33", &[], expect!["33:33 [4, 44] /var/www"]);
        check("www:adm", &[], expect!["33:4 [] /var/www"]);
        check("1234", &[], expect!["1234:0 [] /"]);
        check(
            "1234:5678",
            &["ssl", "44", "90"],
            expect!["1234:5678 [44, 90] /"],
        );
        check("7", &[], expect!["8:9 [] /seven"]);
    }

    #[test]
    fn nobody_becomes_root_by_accident() {
        check(
            "nobody",
            &[],
            expect!["unable to find user nobody: no matching entries in passwd file"],
        );
        check(
            "root:none",
            &[],
            expect!["unable to find group none: no matching entries in group file"],
        );
        check(
            "4294967296",
            &[],
            expect!["uids and gids must be in range 0-2147483647"],
        );
        check(
            "big",
            &[],
            expect!["uids and gids must be in range 0-2147483647"],
        );
    }
}
