//! Log services: syslog and the journal.
//!
//! A service that does not take its lines in time loses them: the container and whoever stops it shall not wait.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use shoal_api::Timestamp;
use shoal_api::container::StdStream;

use crate::core::logging::{SyslogFormat, Transport};
use crate::shim::protocol::RemoteLog;

/// How long a line may take on its way.
const SEND_MAX: Duration = Duration::from_millis(500);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Pause between attempts to reach a service that has gone.
const RETRY: Duration = Duration::from_secs(1);
/// Where systemd's journal listens.
const JOURNAL: &str = "/run/systemd/journal/socket";
const SEVERITY_ERROR: u8 = 3;
const SEVERITY_INFO: u8 = 6;

/// A service that takes lines.
pub(super) struct Remote {
    log: RemoteLog,
    connection: Option<Connection>,
    tried: Instant,
    hostname: String,
}

enum Connection {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Unix(UnixStream),
    Unixgram(UnixDatagram),
}

impl Remote {
    /// Connects; a service that is not there at the start is an error, as with docker.
    pub(super) fn open(log: RemoteLog) -> io::Result<Self> {
        let connection = match &log {
            RemoteLog::Syslog { target, .. } => connect(&target.transport)?,
            RemoteLog::Journal { .. } => Connection::Unixgram(
                datagram(JOURNAL)
                    .map_err(|_| io::Error::other("journald is not enabled on this host"))?,
            ),
        };
        let hostname = nix::unistd::gethostname().ok();
        Ok(Self {
            log,
            connection: Some(connection),
            tried: Instant::now(),
            hostname: hostname
                .and_then(|name| name.into_string().ok())
                .unwrap_or_else(|| "localhost".into()),
        })
    }

    pub(super) fn line(&mut self, stream: StdStream, line: &[u8], at: Timestamp) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let severity = if stream == StdStream::Stderr {
            SEVERITY_ERROR
        } else {
            SEVERITY_INFO
        };
        let message = match &self.log {
            RemoteLog::Syslog { target, tag, pid } => {
                let priority = target.facility * 8 + severity;
                let mut message =
                    header(target.format, priority, at, &self.hostname, tag, *pid).into_bytes();
                message.extend_from_slice(line);
                // Streams have no other end of a message.
                if matches!(target.transport, Transport::Tcp(_) | Transport::Unix(_)) {
                    message.push(b'\n');
                }
                message
            }
            RemoteLog::Journal { fields } => journal(fields, severity, line),
        };
        if self.connection.is_none() && self.tried.elapsed() >= RETRY {
            self.tried = Instant::now();
            self.connection = match &self.log {
                RemoteLog::Syslog { target, .. } => connect(&target.transport).ok(),
                RemoteLog::Journal { .. } => datagram(JOURNAL).ok().map(Connection::Unixgram),
            };
        }
        if let Some(connection) = &mut self.connection
            && connection.send(&message).is_err()
        {
            self.connection = None;
            self.tried = Instant::now();
        }
    }
}

impl Connection {
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => match socket.send(message) {
                // Nobody listens just now; somebody may tomorrow.
                Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                sent => sent.map(drop),
            },
            Self::Unixgram(socket) => socket.send(message).map(drop),
            Self::Tcp(socket) => socket.write_all(message),
            Self::Unix(socket) => socket.write_all(message),
        }
    }
}

fn connect(transport: &Transport) -> io::Result<Connection> {
    let resolve = |address: &str| {
        let found = address.to_socket_addrs()?.next();
        found.ok_or_else(|| io::Error::other(format!("no address for {address}")))
    };
    Ok(match transport {
        Transport::Udp(address) => {
            let address = resolve(address)?;
            let any = if address.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(address)?;
            Connection::Udp(socket)
        }
        Transport::Tcp(address) => {
            let socket = TcpStream::connect_timeout(&resolve(address)?, CONNECT_MAX)?;
            socket.set_write_timeout(Some(SEND_MAX))?;
            Connection::Tcp(socket)
        }
        Transport::Unix(path) => {
            let socket = UnixStream::connect(path)?;
            socket.set_write_timeout(Some(SEND_MAX))?;
            Connection::Unix(socket)
        }
        Transport::Unixgram(path) => Connection::Unixgram(datagram(path)?),
    })
}

fn datagram(path: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_write_timeout(Some(SEND_MAX))?;
    Ok(socket)
}

/// Everything before the line itself.
fn header(
    format: SyslogFormat,
    priority: u8,
    at: Timestamp,
    hostname: &str,
    tag: &str,
    pid: u32,
) -> String {
    let rfc3339 = at.to_string();
    match format {
        SyslogFormat::Local => format!("<{priority}>{} {tag}[{pid}]: ", stamp(&rfc3339)),
        SyslogFormat::Rfc3164 => {
            format!("<{priority}>{} {hostname} {tag}[{pid}]: ", stamp(&rfc3339))
        }
        SyslogFormat::Rfc5424 | SyslogFormat::Rfc5424Micro => {
            let (seconds, fraction) = rfc3339
                .trim_end_matches('Z')
                .split_once('.')
                .unwrap_or((rfc3339.trim_end_matches('Z'), ""));
            let time = match format {
                SyslogFormat::Rfc5424Micro => format!("{seconds}.{fraction:0<6.6}Z"),
                _ => format!("{seconds}Z"),
            };
            format!("<{priority}>1 {time} {hostname} {tag} {pid} {tag} - ")
        }
    }
}

/// `Jan  2 15:04:05` out of `2006-01-02T15:04:05Z`.
fn stamp(rfc3339: &str) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let number = |range| {
        rfc3339
            .get(range)
            .and_then(|digits: &str| digits.parse::<usize>().ok())
    };
    let month = number(5..7).and_then(|month| MONTHS.get(month.wrapping_sub(1)));
    let time = rfc3339.get(11..19).unwrap_or("00:00:00");
    format!(
        "{} {:>2} {time}",
        month.unwrap_or(&"Jan"),
        number(8..10).unwrap_or(1)
    )
}

/// A message in the journal's own protocol: `NAME=value` lines, and a length where a value has several lines.
fn journal(fields: &[(String, String)], severity: u8, line: &[u8]) -> Vec<u8> {
    let mut text = String::new();
    write!(text, "PRIORITY={severity}\n").expect("writing to a String cannot fail");
    for (name, value) in fields {
        if !value.contains('\n') {
            write!(text, "{name}={value}\n").expect("writing to a String cannot fail");
        }
    }
    let mut message = text.into_bytes();
    message.extend_from_slice(b"MESSAGE\n");
    message.extend_from_slice(&(line.len() as u64).to_le_bytes());
    message.extend_from_slice(line);
    message.push(b'\n');
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_the_standards() {
        let at = Timestamp::parse_rfc3339("2026-01-02T15:04:05.123456789Z").expect("a time");
        let of = |format| header(format, 30, at, "host", "tag", 7);
        assert_eq!(of(SyslogFormat::Local), "<30>Jan  2 15:04:05 tag[7]: ");
        assert_eq!(
            of(SyslogFormat::Rfc3164),
            "<30>Jan  2 15:04:05 host tag[7]: "
        );
        assert_eq!(
            of(SyslogFormat::Rfc5424),
            "<30>1 2026-01-02T15:04:05Z host tag 7 tag - "
        );
        assert_eq!(
            of(SyslogFormat::Rfc5424Micro),
            "<30>1 2026-01-02T15:04:05.123456Z host tag 7 tag - "
        );
    }

    #[test]
    fn the_journal_takes_fields_and_a_counted_message() {
        let fields = [("CONTAINER_NAME".to_owned(), "web".to_owned())];
        assert_eq!(
            journal(&fields, 6, b"a\nb"),
            b"PRIORITY=6\nCONTAINER_NAME=web\nMESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n"
        );
    }
}
