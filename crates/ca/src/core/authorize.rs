//! Who may call which RPC, as one table. What is not in it is refused.
//!
//! After SwarmKit's `tls_authorization` options. A row only opens the door: the services themselves also bind the
//! caller's node id to what it asks for.

use super::role::Role;

/// Callers that a row lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Callers {
    /// Everyone, even without a certificate.
    Anyone,
    /// Every node of the cluster.
    Nodes,
    /// Managers only.
    Managers,
}

/// `Service.Method`, or `Service.*` for all methods of a service.
const TABLE: &[(&str, Callers)] = &[
    ("NodeCa.GetRootCertificate", Callers::Anyone),
    ("NodeCa.IssueNodeCertificate", Callers::Anyone), // a token or the current certificate decides
    ("Control.*", Callers::Managers),
    ("Dispatcher.Session", Callers::Nodes),
    ("Dispatcher.Describe", Callers::Nodes),
    ("Dispatcher.Heartbeat", Callers::Nodes),
    ("Dispatcher.Assignments", Callers::Nodes),
    ("Dispatcher.UpdateTaskStatus", Callers::Nodes),
    ("Dispatcher.AcknowledgeView", Callers::Nodes),
    ("Dispatcher.Attach", Callers::Nodes),
    ("Dispatcher.Leave", Callers::Nodes),
    ("LogBroker.ListenSubscriptions", Callers::Nodes),
    ("LogBroker.PublishLogs", Callers::Nodes),
    ("ExecBroker.CarryExec", Callers::Nodes),
    ("Execs.*", Callers::Managers),
    ("Logs.*", Callers::Managers),
    ("Raft.*", Callers::Managers),
    ("RaftMembership.*", Callers::Managers),
];

/// Whether a caller of this role (`None`: no certificate) may call the RPC at this gRPC path.
///
/// Paths look like `/shoal.v1.Dispatcher/Session`; the package does not matter.
pub fn is_allowed(path: &str, caller: Option<Role>) -> bool {
    match (row(path), caller) {
        (Some(Callers::Anyone), _) | (Some(Callers::Nodes), Some(_)) => true,
        (Some(Callers::Managers), Some(Role::Manager)) => true,
        (Some(Callers::Nodes | Callers::Managers), _) | (None, _) => false,
    }
}

/// Whether the table has a row for the RPC at this path.
pub fn is_listed(path: &str) -> bool {
    row(path).is_some()
}

fn row(path: &str) -> Option<Callers> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let service = service.rsplit('.').next()?;
    TABLE
        .iter()
        .find(|(name, _)| {
            name.split_once('.')
                .is_some_and(|(s, m)| s == service && (m == "*" || m == method))
        })
        .map(|(_, callers)| *callers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, anonymous: bool, worker: bool, manager: bool) {
        let got =
            [None, Some(Role::Worker), Some(Role::Manager)].map(|role| is_allowed(path, role));
        assert_eq!(got, [anonymous, worker, manager], "{path}");
    }

    #[test]
    fn doors_open_by_role() {
        check("/shoal.v1.NodeCa/GetRootCertificate", true, true, true);
        check("/shoal.v1.Dispatcher/Session", false, true, true);
        check("/shoal.v1.Raft/StreamMessages", false, false, true);
        check("/shoal.v1.Control/Write", false, false, true);
    }

    /// The whole table: who may make which call without a certificate, as a worker, and as a manager.
    const WHO_MAY: &str = "\
NodeCa.GetRootCertificate        anyone worker manager
NodeCa.IssueNodeCertificate      anyone worker manager
Control.Write                    -      -      manager
Control.ListPassing              -      -      manager
Dispatcher.Session               -      worker manager
Dispatcher.Describe              -      worker manager
Dispatcher.Heartbeat             -      worker manager
Dispatcher.Assignments           -      worker manager
Dispatcher.UpdateTaskStatus      -      worker manager
Dispatcher.AcknowledgeView       -      worker manager
Dispatcher.Attach                -      worker manager
Dispatcher.Leave                 -      worker manager
ExecBroker.CarryExec             -      worker manager
Execs.Exec                       -      -      manager
LogBroker.ListenSubscriptions    -      worker manager
LogBroker.PublishLogs            -      worker manager
Logs.SubscribeLogs               -      -      manager
Raft.StreamMessages              -      -      manager
Raft.StreamSnapshot              -      -      manager
RaftMembership.Join              -      -      manager
RaftMembership.Leave             -      -      manager
";

    #[test]
    fn every_rpc_has_a_row() {
        let rooms = [
            include_str!("../../../../proto/ca.proto"),
            include_str!("../../../../proto/control.proto"),
            include_str!("../../../../proto/dispatcher.proto"),
            include_str!("../../../../proto/exec.proto"),
            include_str!("../../../../proto/logs.proto"),
            include_str!("../../../../proto/raft.proto"),
        ];
        let mut service = "";
        let mut told = String::new();
        for line in rooms.iter().flat_map(|room| room.lines()) {
            if let Some(name) = line.strip_prefix("service ") {
                service = name.trim_end_matches(" {");
            }
            if let Some((method, _)) = line
                .trim()
                .strip_prefix("rpc ")
                .and_then(|rest| rest.split_once('('))
            {
                let path = format!("/shoal.v1.{service}/{method}");
                assert!(is_listed(&path), "{path}");
                let callers = [
                    ("anyone", None),
                    ("worker", Some(Role::Worker)),
                    ("manager", Some(Role::Manager)),
                ];
                let may =
                    callers.map(|(name, role)| if is_allowed(&path, role) { name } else { "-" });
                let call = format!("{service}.{method}");
                told.push_str(&format!("{call:33}{:6} {:6} {}\n", may[0], may[1], may[2]));
            }
        }
        assert_eq!(told, WHO_MAY);
    }

    #[test]
    fn what_is_not_listed_is_refused_to_everyone() {
        for path in [
            "",
            "/",
            "Raft/StreamMessages",
            "/shoal.v1.NodeCa/GetUnlockKey",
            "/shoal.v1.Dispatcher/Sessions",
            "/x/y/z",
        ] {
            check(path, false, false, false);
        }
    }
}
