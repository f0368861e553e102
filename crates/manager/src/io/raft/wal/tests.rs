use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use raft::eraftpb::Entry;

use super::*;

/// What a disk was told, in order.
#[derive(Debug, Clone)]
enum Op {
    Create(String, u64),
    Write(String, u64, Vec<u8>),
    Sync,
    Rename(String, String),
    Remove(String),
}

type Files = BTreeMap<String, Vec<u8>>;

fn perform(files: &mut Files, op: &Op) {
    match op {
        Op::Create(name, size) => {
            files.insert(name.clone(), vec![0; *size as usize]);
        }
        Op::Write(name, offset, bytes) => {
            let file = files.get_mut(name).unwrap();
            let end = *offset as usize + bytes.len();
            if file.len() < end {
                file.resize(end, 0);
            }
            file[*offset as usize..end].copy_from_slice(bytes);
        }
        Op::Sync => {}
        Op::Rename(from, to) => {
            let file = files.remove(from).unwrap();
            files.insert(to.clone(), file);
        }
        Op::Remove(name) => {
            files.remove(name);
        }
    }
}

/// A disk in memory that remembers how it came to be what it is.
#[derive(Debug, Clone, Default)]
struct TracedDisk(Arc<Mutex<(Files, Vec<Op>)>>);

impl TracedDisk {
    fn of(files: Files) -> Self {
        Self(Arc::new(Mutex::new((files, Vec::new()))))
    }

    fn state(&self) -> MutexGuard<'_, (Files, Vec<Op>)> {
        self.0.lock().unwrap()
    }

    fn log(&self, op: Op) {
        let (files, ops) = &mut *self.state();
        perform(files, &op);
        ops.push(op);
    }
}

impl Disk for TracedDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().0.keys().cloned().collect())
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.state()
            .0
            .get(name)
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn create(&self, name: &str, size: u64) -> io::Result<Box<dyn DiskFile>> {
        self.log(Op::Create(name.into(), size));
        Ok(Box::new(TracedFile(self.clone(), name.into())))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(TracedFile(self.clone(), name.into())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.log(Op::Rename(from.into(), to.into()));
        // An open file keeps its content under the new name.
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.log(Op::Remove(name.into()));
        Ok(())
    }
    fn sync_names(&self) -> io::Result<()> {
        self.log(Op::Sync);
        Ok(())
    }
}

#[derive(Debug)]
struct TracedFile(TracedDisk, String);

impl DiskFile for TracedFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Segments are made under a temporary name and stay open across the rename.
        let renamed = self.1.trim_end_matches(".tmp").to_owned();
        if !self.0.state().0.contains_key(&self.1) {
            self.1 = renamed;
        }
        self.0
            .log(Op::Write(self.1.clone(), offset, bytes.to_vec()));
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        self.0.log(Op::Sync);
        Ok(())
    }
}

fn key() -> DataKey {
    DataKey::new([7; 32])
}

fn owner() -> Owner {
    Owner::new(&"cluster1".parse().unwrap(), &"node1".parse().unwrap())
}

fn open(disk: &TracedDisk) -> Result<(Wal, Vec<Record>), WalError> {
    Wal::open(Arc::new(disk.clone()), key().into(), owner(), 2048)
}

fn record(number: u64) -> Record {
    let mut record = Record::default();
    (record.hard_state.term, record.hard_state.commit) = (1, number);
    let mut entry = Entry::default();
    (entry.term, entry.index) = (1, number);
    entry.data = vec![number as u8; (number as usize * 97) % 900].into();
    record.entries.push(entry);
    record
}

/// A disk with `count` records over several segments, the trace, and how many operations each append had taken.
fn written(count: u64) -> (TracedDisk, Vec<Record>, Vec<usize>) {
    let disk = TracedDisk::default();
    let (mut wal, found) = open(&disk).unwrap();
    assert!(found.is_empty());
    let records: Vec<_> = (1..=count).map(record).collect();
    let mut acknowledged = Vec::new();
    for record in &records {
        wal.append(record).unwrap();
        acknowledged.push(disk.state().1.len());
    }
    (disk, records, acknowledged)
}

/// Opens a crash image twice (repair must be stable), and once more after appending to it.
fn check_image(image: Files, records: &[Record], acknowledged: usize, what: &str) {
    let disk = TracedDisk::of(image);
    let (_, found) = open(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(
        found.len() >= acknowledged,
        "{what}: {} of {acknowledged} acknowledged records",
        found.len()
    );
    assert_eq!(found, records[..found.len()], "{what}");
    let (mut wal, again) = open(&disk).unwrap();
    assert_eq!(again, found, "{what}");
    wal.append(&record(1000)).unwrap();
    let (_, longer) = open(&disk).unwrap();
    assert_eq!(longer.len(), found.len() + 1, "{what}");
    assert_eq!(longer.last(), Some(&record(1000)));
}

#[test]
fn records_are_read_back_over_segments() {
    let (disk, records, _) = written(40);
    assert!(disk.list().unwrap().len() > 5);
    assert_eq!(open(&disk).unwrap().1, records);
}

#[test]
fn every_prefix_of_the_written_bytes_opens_with_all_acknowledged_records() {
    let (disk, records, acknowledged) = written(6);
    let ops = disk.state().1.clone();
    let mut files = Files::new();
    for (position, op) in ops.iter().enumerate() {
        let acknowledged = acknowledged.iter().filter(|end| **end <= position).count();
        if let Op::Write(name, offset, bytes) = op {
            for length in 0..bytes.len() {
                let mut image = files.clone();
                perform(
                    &mut image,
                    &Op::Write(name.clone(), *offset, bytes[..length].to_vec()),
                );
                check_image(
                    image,
                    &records,
                    acknowledged,
                    &format!("operation {position}, {length} bytes"),
                );
            }
        }
        perform(&mut files, op);
        check_image(
            files.clone(),
            &records,
            acknowledged,
            &format!("after operation {position}"),
        );
    }
}

#[test]
fn any_torn_set_of_sectors_opens_with_all_acknowledged_records() {
    let (disk, records, acknowledged) = written(20);
    let ops = disk.state().1.clone();
    let mut files = Files::new();
    let mut seed = 1u32;
    for (position, op) in ops.iter().enumerate() {
        let acknowledged = acknowledged.iter().filter(|end| **end <= position).count();
        if let Op::Write(name, offset, bytes) = op {
            for _ in 0..8 {
                let mut image = files.clone();
                let mut whole = files.clone();
                perform(&mut whole, op);
                // Sectors are those of the file: each holds either the old or the new content.
                for sector in (*offset / 512)..=((*offset + bytes.len() as u64) / 512) {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    if seed >> 31 == 0 {
                        let range = (sector * 512) as usize..((sector + 1) * 512) as usize;
                        let range = range.start..range.end.min(whole[name].len());
                        image.get_mut(name).unwrap()[range.clone()]
                            .copy_from_slice(&whole[name][range]);
                    }
                }
                check_image(
                    image,
                    &records,
                    acknowledged,
                    &format!("operation {position}"),
                );
            }
        }
        perform(&mut files, op);
    }
}

#[test]
fn damage_to_what_was_acknowledged_is_refused() {
    let (disk, records, _) = written(30);
    let files = disk.state().0.clone();
    let last = files.keys().next_back().unwrap().clone();
    for (name, content) in &files {
        let used = last_nonzero(content, 0..content.len()).unwrap();
        for at in (0..used).step_by(61) {
            let mut image = files.clone();
            image.get_mut(name).unwrap()[at] ^= 0x10;
            match open(&TracedDisk::of(image)) {
                Err(WalError::Damaged { .. }) => {}
                // In the very last record damage looks like a write cut short.
                Ok((_, found)) => {
                    assert_eq!(name, &last);
                    assert_eq!(found, records[..records.len() - 1], "byte {at} of {name}");
                }
                Err(other) => panic!("byte {at} of {name}: {other}"),
            }
        }
    }
    let mut missing = files.clone();
    let second = missing.keys().nth(1).unwrap().clone();
    missing.remove(&second);
    assert!(matches!(
        open(&TracedDisk::of(missing)),
        Err(WalError::Damaged { .. })
    ));
}

#[test]
fn the_log_of_another_node_or_key_is_refused() {
    let (disk, ..) = written(3);
    let reopen = |key: DataKey, owner| {
        Wal::open(Arc::new(disk.clone()), key.into(), owner, 2048)
            .unwrap_err()
            .to_string()
    };
    let other = Owner::new(&"cluster1".parse().unwrap(), &"node2".parse().unwrap());
    assert!(reopen(key(), other).contains("belongs to another node"));
    assert!(reopen(DataKey::generate(), owner()).contains("sealed with another key"));
}

#[test]
fn released_segments_are_gone_and_the_rest_still_opens() {
    let (disk, records, _) = written(40);
    let (mut wal, _) = open(&disk).unwrap();
    let before = disk.list().unwrap().len();
    wal.release(25).unwrap();
    assert!(disk.list().unwrap().len() < before);
    let (_, found) = open(&disk).unwrap();
    assert_eq!(found, records[records.len() - found.len()..]);
    assert!(found[0].entries[0].index <= 26);
}

#[test]
fn nothing_readable_reaches_the_disk() {
    let disk = TracedDisk::default();
    let (mut wal, _) = open(&disk).unwrap();
    let mut secret = record(1);
    secret.entries[0].data = b"correct horse battery staple".as_slice().into();
    wal.append(&secret).unwrap();
    let files = disk.state().0.clone();
    assert!(
        !files
            .values()
            .any(|file| file.windows(7).any(|window| window == b"battery"))
    );
}
