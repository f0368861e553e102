//! The demo's web service: one static program, the only file of its image.
//!
//! Answers every HTTP request with who it is, who asked and, when `BACKEND` names a service, what that service
//! answered. Compiled on its own by `build.rs` and carried in the daemon's binary; std only, no dynamic loader.

use std::{
    convert::Infallible,
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

/// How long a request may take; longer than any stall of a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// What takes so long was lost on its way and sent again: the kernel waits a second for an answer to a SYN (RFC 6298 §2).
const SLOW_MS: u128 = 950;
/// Pause between two questions for a name that is watched.
const WATCH_PAUSE: Duration = Duration::from_millis(10);
/// Requests under way at once, so that a slow one does not hold up the others.
const LOADERS: usize = 32;

unsafe extern "C" {
    fn sigaddset(set: *mut SignalSet, number: i32) -> i32;
    fn pthread_sigmask(how: i32, set: *const SignalSet, old: *mut SignalSet) -> i32;
    fn sigwait(set: *const SignalSet, number: *mut i32) -> i32;
}

/// As large as any libc's `sigset_t` on Linux.
type SignalSet = [u64; 16];

/// Whether it was asked to stop.
static STOPPING: AtomicBool = AtomicBool::new(false);
/// Requests under way: from the arrival of a connection, or of a further request on it, to the answer.
static UNDER_WAY: Mutex<usize> = Mutex::new(0);
/// Whenever one less is under way.
static ANSWERED: Condvar = Condvar::new();

/// Does this on SIGTERM or SIGINT. As process 1 of a container nothing happens on them unless they are caught.
fn on_stop(then: impl FnOnce() + Send + 'static) {
    let mut signals: SignalSet = [0; 16];
    // SAFETY: the set is large enough, and all threads inherit the mask of the first one, which is alone here; 15 is
    // SIGTERM, 2 SIGINT and 0 SIG_BLOCK on Linux.
    unsafe {
        sigaddset(&mut signals, 15);
        sigaddset(&mut signals, 2);
        pthread_sigmask(0, &signals, std::ptr::null_mut());
    }
    thread::spawn(move || {
        let mut number = 0;
        // SAFETY: both live on this thread's stack.
        unsafe { sigwait(&signals, &mut number) };
        STOPPING.store(true, Ordering::SeqCst);
        then();
    });
}

fn main() {
    match env::args().nth(1).as_deref() {
        None => serve(),
        Some("idle") => {
            on_stop(|| process::exit(0));
            loop {
                thread::park();
            }
        }
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
        Some("watch") => match env::args().nth(2).as_deref().map(watch) {
            Some(Ok(never)) => match never {},
            Some(Err(problem)) => fail(&problem.to_string()),
            None => fail("usage: demo watch NAME"),
        },
        Some("load") => match env::args().skip(2).collect::<Vec<_>>().as_slice() {
            [target, rate, seconds] => match (rate.parse(), seconds.parse()) {
                (Ok(rate @ 1..), Ok(seconds)) => {
                    on_stop(|| ());
                    load(target, rate, seconds)
                }
                _ => fail("load: the rate and the seconds are whole numbers"),
            },
            _ => fail(
                "usage: demo load NAME[:PORT] REQUESTS-PER-SECOND SECONDS (0: until it is stopped)",
            ),
        },
        Some(other) => fail(&format!(
            "unknown word {other:?}: expected nothing, idle, get NAME[:PORT], resolve NAME, watch NAME or load NAME[:PORT] RATE SECONDS"
        )),
    }
}

fn fail(problem: &str) -> ! {
    eprintln!("demo: {problem}");
    process::exit(2)
}

/// Asks at a steady rate, each request on a connection of its own but those of one loader, which keeps its connection as
/// browsers and proxies do; says which failed and when, and which took so long that a packet must have been lost.
fn load(target: &str, rate: u64, seconds: u64) -> ! {
    let (next, failed, slow) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (began, total) = (Instant::now(), rate * seconds);
    let ask = |keeps: bool| {
        let mut kept = None;
        loop {
            if STOPPING.load(Ordering::SeqCst) {
                return;
            }
            let number = next.fetch_add(1, Ordering::Relaxed);
            if total > 0 && number >= total {
                return;
            }
            let due = began + Duration::from_nanos(number * 1_000_000_000 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let asked = began.elapsed();
            if number % (rate * 5) == 0 {
                println!("asked {number}");
            }
            let answer = if keeps {
                fetch_kept(target, &mut kept)
            } else {
                fetch(target).map(drop)
            };
            let took = (began.elapsed() - asked).as_millis();
            let asked = asked.as_millis();
            if let Err(problem) = answer {
                failed.fetch_add(1, Ordering::Relaxed);
                println!("request {number} of {target} at {asked} ms failed: {problem}");
            } else if took >= SLOW_MS {
                slow.fetch_add(1, Ordering::Relaxed);
                println!("request {number} of {target} at {asked} ms took {took} ms");
            }
        }
    };
    thread::scope(|scope| {
        for number in 0..LOADERS {
            scope.spawn(move || ask(number == 0));
        }
    });
    // The last number of each loader was not asked.
    let (asked, failed, slow) = (next.into_inner(), failed.into_inner(), slow.into_inner());
    let asked = if total > 0 { total } else { asked };
    println!("requests={asked} failed={failed} slow={slow}");
    process::exit(i32::from(failed > 0))
}

/// Asks for `/` on a connection that is kept. A server may close one at any moment, so a request that it has not begun to
/// answer is asked again on a new one (RFC 9112 §9.3.1).
fn fetch_kept(target: &str, kept: &mut Option<BufReader<TcpStream>>) -> io::Result<()> {
    if let Some(connection) = kept
        && let Some(stays) = ask_on(target, connection)?
    {
        if !stays {
            *kept = None;
        }
        return Ok(());
    }
    let mut connection = BufReader::new(connect(target)?);
    let stays = ask_on(target, &mut connection)?;
    let stays = stays.ok_or_else(|| io::Error::other("closed without an answer"))?;
    *kept = stays.then_some(connection);
    Ok(())
}

/// Whether the connection stays open after the answer; `None` if it was closed before one.
fn ask_on(target: &str, connection: &mut BufReader<TcpStream>) -> io::Result<Option<bool>> {
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\n\r\n");
    let mut line = String::new();
    let sent = connection.get_mut().write_all(request.as_bytes());
    if sent.is_err() || !matches!(connection.read_line(&mut line), Ok(1..)) {
        return Ok(None);
    }
    let (mut length, mut stays) = (0, true);
    while connection.read_line(&mut line)? > 0 && !line.ends_with("\r\n\r\n") {
        let header = line.lines().last().unwrap_or_default().to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        stays &= header != "connection: close";
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body)?;
    Ok(Some(stays))
}

/// Answers until it is asked to stop; then what is under way is finished, as well as what the kernel has taken already.
fn serve() {
    let port = env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .unwrap_or(80u16);
    // At all addresses of both families, where the kernel has both.
    let listener =
        TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
    let listener = match listener {
        Ok(listener) => listener,
        Err(problem) => fail(&format!("cannot listen on port {port}: {problem}")),
    };
    // Wakes whoever waits for a connection.
    on_stop(move || drop(TcpStream::connect(("127.0.0.1", port))));
    println!("listening on port {port}");
    for connection in listener.incoming() {
        if STOPPING.load(Ordering::SeqCst) && listener.set_nonblocking(true).is_err() {
            break;
        }
        match connection {
            Ok(connection) => {
                let request = UnderWay::begin();
                thread::spawn(move || drop(answer(connection, request)));
            }
            Err(problem) if problem.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => {}
        }
    }
    let mut requests = UNDER_WAY.lock().expect("nobody panics");
    while *requests > 0 {
        requests = ANSWERED.wait(requests).expect("nobody panics");
    }
}

/// One of the requests under way.
struct UnderWay;

impl UnderWay {
    fn begin() -> Self {
        *UNDER_WAY.lock().expect("nobody panics") += 1;
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *UNDER_WAY.lock().expect("nobody panics") -= 1;
        ANSWERED.notify_all();
    }
}

fn answer(mut connection: TcpStream, request: UnderWay) -> io::Result<()> {
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let client = connection.peer_addr()?.ip().to_canonical();
    let mut lines = BufReader::new(connection.try_clone()?);
    let mut request = Some(request);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        request.get_or_insert_with(UnderWay::begin);
        let path = line.split_whitespace().nth(1).unwrap_or("/").to_owned();
        let mut keep_alive = line.trim_end().ends_with("HTTP/1.1");
        loop {
            let mut header = String::new();
            if lines.read_line(&mut header)? == 0 || header.trim_end().is_empty() {
                break;
            }
            let header = header.to_ascii_lowercase();
            if header.starts_with("connection:") {
                keep_alive = header.contains("keep-alive");
            }
        }
        keep_alive &= !STOPPING.load(Ordering::SeqCst);
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
        request = None;
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
    let mut connection = connect(target)?;
    write!(connection, "GET / HTTP/1.0\r\nHost: {target}\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned());
    body.ok_or_else(|| io::Error::other("answer without a body"))
}

/// Connects to `name[:port]`.
fn connect(target: &str) -> io::Result<TcpStream> {
    let (name, port) = match target.split_once(':') {
        Some((name, port)) => (name, port.parse().map_err(io::Error::other)?),
        None => (target, 80),
    };
    let address = match name.parse() {
        Ok(address) => address,
        Err(_) => resolve(name)?,
    };
    let connection =
        TcpStream::connect_timeout(&SocketAddr::new(IpAddr::V4(address), port), PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// Says what a name resolves to, now and whenever that changes: the time in milliseconds of the era, then the addresses.
/// Ends when nobody reads it any more.
fn watch(name: &str) -> io::Result<Infallible> {
    let mut told = None;
    loop {
        // A name that nobody has leads nowhere; so does one while the resolver is restarted.
        let mut found = addresses(name).unwrap_or_default();
        found.sort_unstable();
        if told.as_ref() != Some(&found) {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let mut line = now.map_err(io::Error::other)?.as_millis().to_string();
            for address in &found {
                line.push_str(&format!(" {address}"));
            }
            let mut out = io::stdout().lock();
            writeln!(out, "{line}")?;
            out.flush()?;
            told = Some(found);
        }
        thread::sleep(WATCH_PAUSE);
    }
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
