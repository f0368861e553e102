//! etcd 3.4 as it comes: three members on loopback, their disks beside those of the managers. In the clear, or over TLS as
//! managers are.

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

use shoal_ca::{ClientConfig, RootCertificate, client_config};
use shoal_manager::io::grpc::client::dial;

use crate::program::{Program, Recipe};

/// Whether members and clients talk in the clear.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Talk {
    Clear,
    Tls,
}

/// The way to a member for clients.
#[derive(Clone)]
pub(crate) struct Place {
    /// `host:port`.
    address: String,
    tls: Option<Arc<ClientConfig>>,
}

/// One member.
pub(crate) struct Member {
    pub(crate) client: Place,
    pub(crate) program: Program,
    recipe: Recipe,
}

impl Member {
    fn start(words: Vec<String>, client: Place) -> Result<Self> {
        let recipe = Recipe {
            program: "etcd".to_owned(),
            words,
            talks: false,
        };
        let program = Program::start(&recipe).context("etcd is Debian's etcd-server")?;
        Ok(Self {
            client,
            program,
            recipe,
        })
    }

    pub(crate) fn restart(&mut self) -> Result<()> {
        self.program.restart(&self.recipe)
    }
}

/// Three members of one cluster, with etcd's own defaults.
pub(crate) async fn three(directory: &Path, talk: Talk) -> Result<Vec<Member>> {
    let directory = directory.join(if talk == Talk::Tls {
        "etcd-tls"
    } else {
        "etcd"
    });
    std::fs::create_dir_all(&directory)?;
    let scheme = if talk == Talk::Tls { "https" } else { "http" };
    let (tls, secured) = match talk {
        Talk::Clear => (None, Vec::new()),
        Talk::Tls => {
            let (tls, words) = certificates(&directory)?;
            (Some(tls), words)
        }
    };
    let ports: Vec<(u16, u16)> = (0..3)
        .map(|_| Ok((crate::free_port()?, crate::free_port()?)))
        .collect::<Result<_>>()?;
    let all: Vec<String> = ports
        .iter()
        .enumerate()
        .map(|(n, (_, peer))| format!("e{n}={scheme}://127.0.0.1:{peer}"))
        .collect();
    let mut members = Vec::new();
    for (number, (client, peer)) in ports.iter().enumerate() {
        let address = format!("127.0.0.1:{client}");
        let client = format!("{scheme}://{address}");
        let peer = format!("{scheme}://127.0.0.1:{peer}");
        let folder = directory.join(format!("e{number}"));
        let words = [
            ("--name", format!("e{number}")),
            ("--data-dir", folder.display().to_string()),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client.clone()),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer),
            ("--initial-cluster", all.join(",")),
        ];
        let words = words
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .chain(secured.iter().cloned());
        let tls = tls.clone();
        members.push(Member::start(words.collect(), Place { address, tls })?);
    }
    leader(&members).await?;
    Ok(members)
}

/// An authority and one certificate for all members, of the kind and strength of ours; how clients and members use them.
fn certificates(directory: &Path) -> Result<(Arc<ClientConfig>, Vec<String>)> {
    const MAKE: &str = "
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=etcd-ca -keyout ca-key.pem -out ca.pem &&
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=etcd -keyout key.pem -out request.pem &&
        printf 'subjectAltName=IP:127.0.0.1,DNS:swarm-manager\\nextendedKeyUsage=serverAuth,clientAuth\\n' > extensions &&
        openssl x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile extensions -out cert.pem";
    let made = Command::new("sh")
        .args(["-c", MAKE])
        .current_dir(directory)
        .output()?;
    let complaint = String::from_utf8_lossy(&made.stderr);
    ensure!(
        made.status.success(),
        "cannot make certificates: {complaint}"
    );
    let root = std::fs::read_to_string(directory.join("ca.pem"))?;
    let tls = client_config(&RootCertificate::from_pem(&root)?, None)?;
    let words = [
        ("--cert-file", "cert.pem"),
        ("--key-file", "key.pem"),
        ("--peer-cert-file", "cert.pem"),
        ("--peer-key-file", "key.pem"),
        ("--peer-trusted-ca-file", "ca.pem"),
    ];
    let words = words.into_iter().flat_map(|(flag, file)| {
        let file = directory.join(file).display().to_string();
        [flag.to_owned(), file]
    });
    let words = words.chain(["--peer-client-cert-auth".to_owned()]);
    Ok((tls, words.collect()))
}

/// The one that leads, asked until there is one.
pub(crate) async fn leader(members: &[Member]) -> Result<usize> {
    loop {
        for (place, member) in members.iter().enumerate() {
            let Ok(mut client) = Client::connect(&member.client).await else {
                continue;
            };
            if client.leads().await.unwrap_or(false) {
                return Ok(place);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A client that speaks the few words of etcd's gRPC API that are needed (`rpc.proto` of etcd 3.4).
#[derive(Clone)]
pub(crate) struct Client(Grpc<Channel>);

impl Client {
    /// With TLS the connection is made by the first call, by the same code that managers are called with.
    pub(crate) async fn connect(place: &Place) -> Result<Self> {
        let address = &place.address;
        let channel = match &place.tls {
            Some(tls) => dial(address, Arc::clone(tls)),
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
                endpoint.tcp_nodelay(true).connect().await?
            }
        };
        Ok(Self(Grpc::new(channel)))
    }

    /// `KV.Put`; answered when it is decided.
    pub(crate) async fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Status> {
        let mut request = BytesMut::new();
        field(&mut request, 1, key.as_bytes());
        field(&mut request, 2, value);
        self.call("/etcdserverpb.KV/Put", request.freeze())
            .await
            .map(drop)
    }

    /// `Maintenance.Status`: whether the member that is asked is the leader.
    async fn leads(&mut self) -> Result<bool, Status> {
        let answer = self
            .call("/etcdserverpb.Maintenance/Status", Bytes::new())
            .await?;
        let header = bytes_of(&answer, 1).unwrap_or_default();
        let (own, leader) = (number_of(&header, 2), number_of(&answer, 4));
        Ok(own.is_some() && own == leader)
    }

    async fn call(&mut self, path: &'static str, request: Bytes) -> Result<Bytes, Status> {
        let gone = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        self.0.ready().await.map_err(gone)?;
        let path = PathAndQuery::from_static(path);
        let answer = self.0.unary(Request::new(request), path, Raw).await?;
        Ok(answer.into_inner())
    }
}

/// Writes a field of bytes as protocol buffers do.
fn field(out: &mut BytesMut, number: u8, value: &[u8]) {
    out.put_u8(number << 3 | 2);
    let mut length = value.len();
    while length >= 0x80 {
        out.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
    out.put_slice(value);
}

/// The fields of a message: number, and its value as a number or as bytes.
fn fields(message: &Bytes) -> Vec<(u64, Result<u64, Bytes>)> {
    fn varint(rest: &mut Bytes) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = rest.try_get_u8().ok()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
    let mut rest = message.clone();
    let mut found = Vec::new();
    while let Some(key) = varint(&mut rest) {
        let value = match key & 7 {
            0 => varint(&mut rest).map(Ok),
            2 => varint(&mut rest)
                .and_then(|length| usize::try_from(length).ok())
                .filter(|length| *length <= rest.len())
                .map(|length| Err(rest.split_to(length))),
            _ => None,
        };
        let Some(value) = value else { break };
        found.push((key >> 3, value));
    }
    found
}

fn number_of(message: &Bytes, number: u64) -> Option<u64> {
    let mut all = fields(message).into_iter();
    all.find_map(|(n, value)| value.ok().filter(|_| n == number))
}

fn bytes_of(message: &Bytes, number: u64) -> Option<Bytes> {
    let mut all = fields(message).into_iter();
    all.find_map(|(n, value)| value.err().filter(|_| n == number))
}

/// Messages as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = input.remaining();
        Ok(Some(input.copy_to_bytes(length)))
    }
}
