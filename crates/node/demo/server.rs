//! The demo's web service: one static program, the only file of its image.
//!
//! Answers every HTTP request with who it is, who asked and, when `BACKEND` names a service, what that service
//! answered. Compiled on its own by `build.rs` and carried in the daemon's binary; std only, no dynamic loader.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(3);
/// Requests under way at once, so that a slow one does not hold up the others.
const LOADERS: usize = 32;

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn _exit(status: i32) -> !;
}

/// As process 1 of a container nothing happens on SIGTERM unless it is caught.
extern "C" fn stop(_number: i32) {
    // SAFETY: _exit(2) is async-signal-safe.
    unsafe { _exit(0) }
}

fn main() {
    // SAFETY: the handler only calls an async-signal-safe function; 15 is SIGTERM and 2 SIGINT on Linux.
    unsafe {
        signal(15, stop);
        signal(2, stop);
    }
    match env::args().nth(1).as_deref() {
        None => serve(),
        Some("idle") => loop {
            thread::park();
        },
        Some("get") => match env::args().nth(2).as_deref().map(fetch) {
            Some(Ok(body)) => print!("{body}"),
            Some(Err(problem)) => fail(&problem.to_string()),
            None => fail("usage: demo get NAME[:PORT]"),
        },
        Some("resolve") => match env::args().nth(2).as_deref().map(addresses) {
            Some(Ok(found)) => found.iter().for_each(|address| println!("{address}")),
            Some(Err(problem)) => fail(&problem.to_string()),
            None => fail("usage: demo resolve NAME"),
        },
        Some("load") => match env::args().skip(2).collect::<Vec<_>>().as_slice() {
            [target, rate, seconds] => match (rate.parse(), seconds.parse()) {
                (Ok(rate @ 1..), Ok(seconds)) => load(target, rate, seconds),
                _ => fail("load: the rate and the seconds are whole numbers"),
            },
            _ => fail("usage: demo load NAME[:PORT] REQUESTS-PER-SECOND SECONDS"),
        },
        Some(other) => fail(&format!(
            "unknown word {other:?}: expected nothing, idle, get NAME[:PORT], resolve NAME or load NAME[:PORT] RATE SECONDS"
        )),
    }
}

fn fail(problem: &str) -> ! {
    eprintln!("demo: {problem}");
    process::exit(2)
}

/// Asks at a steady rate, each request on a connection of its own; says which failed and when.
fn load(target: &str, rate: u64, seconds: u64) -> ! {
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let (began, total) = (Instant::now(), rate * seconds);
    let ask = || loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= total {
            return;
        }
        let due = began + Duration::from_nanos(number * 1_000_000_000 / rate);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let asked = began.elapsed().as_millis();
        if number % (rate * 5) == 0 {
            println!("asked {number}");
        }
        if let Err(problem) = fetch(target) {
            failed.fetch_add(1, Ordering::Relaxed);
            println!("request {number} of {target} at {asked} ms failed: {problem}");
        }
    };
    thread::scope(|scope| {
        for _ in 0..LOADERS {
            scope.spawn(ask);
        }
    });
    let failed = failed.into_inner();
    println!("requests={total} failed={failed}");
    process::exit(i32::from(failed > 0))
}

fn serve() {
    let port = env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .unwrap_or(80u16);
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(problem) => fail(&format!("cannot listen on port {port}: {problem}")),
    };
    println!("listening on port {port}");
    for connection in listener.incoming().flatten() {
        thread::spawn(move || drop(answer(connection)));
    }
}

fn answer(mut connection: TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    let client = connection.peer_addr()?.ip();
    let mut request = BufReader::new(connection.try_clone()?);
    loop {
        let mut line = String::new();
        if request.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split_whitespace().nth(1).unwrap_or("/").to_owned();
        let mut keep_alive = line.trim_end().ends_with("HTTP/1.1");
        loop {
            let mut header = String::new();
            if request.read_line(&mut header)? == 0 || header.trim_end().is_empty() {
                break;
            }
            let header = header.to_ascii_lowercase();
            if header.starts_with("connection:") {
                keep_alive = header.contains("keep-alive");
            }
        }
        println!("{client} {path}");
        let body = body(client);
        let closing = if keep_alive { "keep-alive" } else { "close" };
        write!(
            connection,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {closing}\r\n\r\n{body}",
            body.len()
        )?;
        if !keep_alive {
            return Ok(());
        }
    }
}

fn body(client: IpAddr) -> String {
    let task = env::var("TASK")
        .or_else(|_| env::var("HOSTNAME"))
        .unwrap_or_default();
    let mut body = format!("task={task} client={client}");
    if let Ok(backend) = env::var("BACKEND") {
        match fetch(&backend) {
            Ok(answer) => body.push_str(&format!(" backend=[{}]", answer.trim_end())),
            Err(problem) => body.push_str(&format!(" backend-error=[{problem}]")),
        }
    }
    body.push('\n');
    body
}

/// Asks `name[:port]` for `/` and returns the body.
fn fetch(target: &str) -> io::Result<String> {
    let (name, port) = match target.split_once(':') {
        Some((name, port)) => (name, port.parse().map_err(io::Error::other)?),
        None => (target, 80),
    };
    let address = match name.parse() {
        Ok(address) => address,
        Err(_) => resolve(name)?,
    };
    let mut connection =
        TcpStream::connect_timeout(&SocketAddr::new(IpAddr::V4(address), port), PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    write!(connection, "GET / HTTP/1.0\r\nHost: {name}\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned());
    body.ok_or_else(|| io::Error::other("answer without a body"))
}

/// The first address of a name.
fn resolve(name: &str) -> io::Result<Ipv4Addr> {
    Ok(addresses(name)?[0])
}

/// The A records of `name`, at least one, from the container's resolver (RFC 1035 §4); a static program has no NSS.
fn addresses(name: &str) -> io::Result<Vec<Ipv4Addr>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut query = vec![0x53, 0x48, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).map_err(io::Error::other)?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send_to(&query, "127.0.0.11:53")?;
    let mut reply = [0; 512];
    let length = socket.recv(&mut reply)?;
    let reply = &reply[..length];
    let unreadable =
        || io::Error::other(format!("no address of {name:?} in the resolver's answer"));
    // The answers follow the question, which is repeated as it was asked. Each begins with its owner's name.
    let mut at = query.len();
    let mut found = Vec::new();
    for _ in 0..u16::from_be_bytes([
        *reply.get(6).ok_or_else(unreadable)?,
        *reply.get(7).ok_or_else(unreadable)?,
    ]) {
        while let Some(length) = reply.get(at).copied() {
            if length & 0xc0 == 0xc0 {
                at += 2;
                break;
            }
            at += 1 + usize::from(length);
            if length == 0 {
                break;
            }
        }
        let record = reply.get(at..at + 10).ok_or_else(unreadable)?;
        let size = usize::from(u16::from_be_bytes([record[8], record[9]]));
        let data = reply.get(at + 10..at + 10 + size).ok_or_else(unreadable)?;
        if record[..2] == [0, 1] {
            let octets: [u8; 4] = data.try_into().map_err(io::Error::other)?;
            found.push(octets.into());
        }
        at += 10 + size;
    }
    if found.is_empty() {
        return Err(unreadable());
    }
    Ok(found)
}
