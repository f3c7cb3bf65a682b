//! The simulated disk without calls and faults: what is there now, what is durable, and what lies between.

use std::{
    collections::BTreeMap,
    io,
    path::{Component, Path},
};

use rustix::io::Errno;

use super::CrashMode;

/// The unit that a disk writes whole or not at all.
pub(super) const SECTOR: usize = 512;

/// Number of a file or directory. 0 is the root directory.
pub(super) type Ino = usize;

#[derive(Clone, Debug)]
enum Node {
    File(Image<Vec<u8>>),
    Dir(Image<BTreeMap<String, Ino>>),
}

/// A thing as the process sees it and as a power loss would leave it at worst.
#[derive(Clone, Debug, Default)]
struct Image<T> {
    now: T,
    durable: T,
}

#[derive(Clone, Copy)]
enum Side {
    Now,
    Durable,
}

impl<T> Image<T> {
    fn side(&mut self, side: Side) -> &mut T {
        match side {
            Side::Now => &mut self.now,
            Side::Durable => &mut self.durable,
        }
    }
}

/// A change that no sync has covered yet.
#[derive(Clone, Debug)]
enum Change {
    Write {
        file: Ino,
        at: usize,
        data: Vec<u8>,
    },
    SetLen {
        file: Ino,
        len: usize,
    },
    Link {
        dir: Ino,
        name: String,
        ino: Ino,
    },
    /// `after_link` names the other half of a rename across directories, which must not get lost alone.
    Unlink {
        dir: Ino,
        name: String,
        ino: Ino,
        after_link: Option<(Ino, String)>,
    },
    Rename {
        dir: Ino,
        from: String,
        to: String,
        ino: Ino,
    },
}

impl Change {
    fn file(&self) -> Option<Ino> {
        match self {
            Self::Write { file, .. } | Self::SetLen { file, .. } => Some(*file),
            _ => None,
        }
    }

    fn dir(&self) -> Option<Ino> {
        match self {
            Self::Link { dir, .. } | Self::Unlink { dir, .. } | Self::Rename { dir, .. } => Some(*dir),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Disk {
    nodes: Vec<Node>,
    /// In the order in which they were made.
    pending: Vec<Change>,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self { nodes: vec![Node::Dir(Image::default())], pending: Vec::new() }
    }

    fn entries(&self, dir: Ino) -> io::Result<&BTreeMap<String, Ino>> {
        match &self.nodes[dir] {
            Node::Dir(image) => Ok(&image.now),
            Node::File(_) => Err(Errno::NOTDIR.into()),
        }
    }

    fn image(&self, file: Ino) -> io::Result<&Image<Vec<u8>>> {
        match &self.nodes[file] {
            Node::File(image) => Ok(image),
            Node::Dir(_) => Err(Errno::ISDIR.into()),
        }
    }

    pub(super) fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.nodes[ino], Node::Dir(_))
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<Ino> {
        let mut at = 0;
        for part in path.components() {
            match part {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => {
                    let name = name.to_str().ok_or(Errno::ILSEQ)?;
                    at = *self.entries(at)?.get(name).ok_or(Errno::NOENT)?;
                }
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL.into()),
            }
        }
        Ok(at)
    }

    /// The directory that holds (or would hold) `path`, and the last component.
    pub(super) fn parent(&self, path: &Path) -> io::Result<(Ino, String)> {
        let name = path.file_name().and_then(|n| n.to_str()).ok_or(Errno::INVAL)?.to_owned();
        let dir = self.find(path.parent().unwrap_or(path))?;
        self.entries(dir)?;
        Ok((dir, name))
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<(String, bool, u64)>> {
        let dir = self.find(path)?;
        Ok(self
            .entries(dir)?
            .iter()
            .map(|(name, ino)| match &self.nodes[*ino] {
                Node::File(image) => (name.clone(), false, image.now.len() as u64),
                Node::Dir(_) => (name.clone(), true, 0),
            })
            .collect())
    }

    pub(super) fn content(&self, file: Ino) -> io::Result<&[u8]> {
        Ok(&self.image(file)?.now)
    }

    pub(super) fn durable_content(&self, file: Ino) -> io::Result<&[u8]> {
        Ok(&self.image(file)?.durable)
    }

    /// Bytes in all files that have a name.
    pub(super) fn used(&self) -> u64 {
        let mut used = 0;
        let mut dirs = vec![0];
        while let Some(dir) = dirs.pop() {
            let Node::Dir(image) = &self.nodes[dir] else { continue };
            for ino in image.now.values() {
                match &self.nodes[*ino] {
                    Node::File(image) => used += image.now.len() as u64,
                    Node::Dir(_) => dirs.push(*ino),
                }
            }
        }
        used
    }

    fn link(&mut self, path: &Path, node: Node) -> io::Result<Ino> {
        let (dir, name) = self.parent(path)?;
        if self.entries(dir)?.contains_key(&name) {
            return Err(Errno::EXIST.into());
        }
        let ino = self.nodes.len();
        self.nodes.push(node);
        self.change(Change::Link { dir, name, ino });
        Ok(ino)
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<Ino> {
        self.link(path, Node::File(Image::default()))
    }

    pub(super) fn make_dir(&mut self, path: &Path) -> io::Result<Ino> {
        self.link(path, Node::Dir(Image::default()))
    }

    pub(super) fn write(&mut self, file: Ino, data: &[u8], at: u64) -> io::Result<()> {
        self.image(file)?;
        self.change(Change::Write { file, at: at as usize, data: data.to_vec() });
        Ok(())
    }

    pub(super) fn set_len(&mut self, file: Ino, len: u64) -> io::Result<()> {
        self.image(file)?;
        self.change(Change::SetLen { file, len: len as usize });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        let ino = *self.entries(from_dir)?.get(&from_name).ok_or(Errno::NOENT)?;
        match self.entries(to_dir)?.get(&to_name) {
            Some(old) if *old == ino => return Ok(()),
            Some(old) if self.is_dir(*old) || self.is_dir(ino) => return Err(Errno::EXIST.into()),
            _ => {}
        }
        if from_dir == to_dir {
            self.change(Change::Rename { dir: from_dir, from: from_name, to: to_name, ino });
        } else {
            let after_link = Some((to_dir, to_name.clone()));
            self.change(Change::Link { dir: to_dir, name: to_name, ino });
            self.change(Change::Unlink { dir: from_dir, name: from_name, ino, after_link });
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path, want_dir: bool) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let ino = *self.entries(dir)?.get(&name).ok_or(Errno::NOENT)?;
        match (self.is_dir(ino), want_dir) {
            (true, false) => return Err(Errno::ISDIR.into()),
            (false, true) => return Err(Errno::NOTDIR.into()),
            (true, true) if !self.entries(ino)?.is_empty() => return Err(Errno::NOTEMPTY.into()),
            _ => {}
        }
        self.change(Change::Unlink { dir, name, ino, after_link: None });
        Ok(())
    }

    /// Makes the change visible and remembers that it is not durable.
    fn change(&mut self, change: Change) {
        apply(&mut self.nodes, &change, Side::Now);
        self.pending.push(change);
    }

    fn settle(&mut self, change: &Change) {
        apply(&mut self.nodes, change, Side::Durable);
    }

    fn take(&mut self, covered: impl Fn(&Change) -> bool) -> Vec<Change> {
        let (taken, rest) = std::mem::take(&mut self.pending).into_iter().partition(covered);
        self.pending = rest;
        taken
    }

    pub(super) fn sync_file(&mut self, file: Ino) {
        for change in self.take(|c| c.file() == Some(file)) {
            self.settle(&change);
        }
    }

    /// A write around the page cache: durable is what is in `from..until`, whoever wrote it, and nothing else.
    pub(super) fn sync_range(&mut self, file: Ino, from: usize, until: usize) {
        if self.pending.iter().any(|c| c.file() == Some(file) && matches!(c, Change::SetLen { .. })) {
            return self.sync_file(file);
        }
        if let Node::File(image) = &mut self.nodes[file] {
            let until = until.min(image.now.len());
            let part = image.now.get(from..until).unwrap_or_default().to_vec();
            apply_bytes(&mut image.durable, &Change::Write { file, at: from, data: part });
        }
        // The rest of the writes of before, in their places.
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::Write { file: other, at, data } if other == file => {
                    let head = from.saturating_sub(at).min(data.len());
                    let tail = until.saturating_sub(at).clamp(head, data.len());
                    for (at, data) in [(at, &data[..head]), (at + tail, &data[tail..])] {
                        if !data.is_empty() {
                            self.pending.push(Change::Write { file, at, data: data.to_vec() });
                        }
                    }
                }
                other => self.pending.push(other),
            }
        }
    }

    pub(super) fn sync_dir(&mut self, dir: Ino) {
        // A name must not leave one directory before it is safe in the other.
        let needed: Vec<(Ino, String)> = self
            .pending
            .iter()
            .filter(|c| c.dir() == Some(dir))
            .filter_map(|c| if let Change::Unlink { after_link, .. } = c { after_link.clone() } else { None })
            .collect();
        let covered = |c: &Change| {
            c.dir() == Some(dir)
                || matches!(c, Change::Link { dir, name, .. } if needed.iter().any(|(d, n)| d == dir && n == name))
        };
        for change in self.take(covered) {
            self.settle(&change);
        }
    }

    pub(super) fn sync_everything(&mut self) {
        for change in self.take(|_| true) {
            self.settle(&change);
        }
    }

    /// A failed sync: the kernel marks the pages clean, so they stay readable and no later sync writes them.
    pub(super) fn lose_dirty(&mut self, file: Option<Ino>) {
        self.take(|c| c.file().is_some() && (file.is_none() || c.file() == file));
    }

    pub(super) fn crash(&mut self, mode: CrashMode, rng: &mut fastrand::Rng) {
        match mode {
            CrashMode::KeepAll => return,
            CrashMode::DropUnsynced => {}
            CrashMode::RandomSectors => self.keep_random_sectors(rng),
            CrashMode::RandomPrefix => self.keep_random_prefix(rng),
        }
        self.pending.clear();
        for node in &mut self.nodes {
            match node {
                Node::File(image) => image.now.clone_from(&image.durable),
                Node::Dir(image) => image.now.clone_from(&image.durable),
            }
        }
    }

    fn keep_random_sectors(&mut self, rng: &mut fastrand::Rng) {
        let pending = std::mem::take(&mut self.pending);
        let mut lost_links: Vec<(Ino, &str)> = Vec::new();
        let mut targets: BTreeMap<Ino, Vec<u8>> = BTreeMap::new();
        for change in &pending {
            match change {
                Change::Write { file, .. } | Change::SetLen { file, .. } => {
                    let Node::File(image) = &self.nodes[*file] else { continue };
                    apply_bytes(targets.entry(*file).or_insert_with(|| image.durable.clone()), change);
                }
                Change::Link { dir, name, .. } if rng.bool() => lost_links.push((*dir, name)),
                Change::Unlink { after_link: Some((dir, name)), .. }
                    if lost_links.contains(&(*dir, name)) => {}
                Change::Unlink { .. } | Change::Rename { .. } if rng.bool() => {}
                name_change => self.settle(name_change),
            }
        }
        for (file, target) in targets {
            if let Node::File(image) = &mut self.nodes[file] {
                image.durable = mix_sectors(&image.durable, &target, rng);
            }
        }
    }

    fn keep_random_prefix(&mut self, rng: &mut fastrand::Rng) {
        let pending = std::mem::take(&mut self.pending);
        let kept = rng.usize(..=pending.len());
        for change in &pending[..kept] {
            self.settle(change);
        }
        if let Some(Change::Write { file, at, data }) = pending.get(kept) {
            let torn = data[..rng.usize(..=data.len())].to_vec();
            if !torn.is_empty() {
                self.settle(&Change::Write { file: *file, at: *at, data: torn });
            }
        }
    }
}

fn apply(nodes: &mut [Node], change: &Change, side: Side) {
    let Some(target) = change.file().or_else(|| change.dir()) else { return };
    match &mut nodes[target] {
        Node::File(image) => apply_bytes(image.side(side), change),
        Node::Dir(image) => apply_name(image.side(side), change),
    }
}

fn apply_bytes(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { at, data, .. } => {
            let end = at + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(data);
        }
        Change::SetLen { len, .. } => bytes.resize(*len, 0),
        _ => {}
    }
}

fn apply_name(names: &mut BTreeMap<String, Ino>, change: &Change) {
    match change {
        Change::Link { name, ino, .. } => {
            names.insert(name.clone(), *ino);
        }
        Change::Unlink { name, ino, .. } if names.get(name) == Some(ino) => {
            names.remove(name);
        }
        Change::Rename { from, to, ino, .. } => {
            if names.get(from) == Some(ino) {
                names.remove(from);
            }
            names.insert(to.clone(), *ino);
        }
        _ => {}
    }
}

/// Each sector from one image or the other, and a length that is the old one, the new one, or between.
fn mix_sectors(old: &[u8], new: &[u8], rng: &mut fastrand::Rng) -> Vec<u8> {
    let (short, long) = (old.len().min(new.len()), old.len().max(new.len()));
    let len = match rng.u8(..4) {
        0 => old.len(),
        3 => rng.usize(short..=long),
        _ => new.len(),
    };
    let mut mixed = Vec::with_capacity(len);
    while mixed.len() < len {
        let sector = mixed.len()..len.min(mixed.len() + SECTOR);
        let from = if rng.bool() { old } else { new };
        for at in sector {
            // Past the end of a file that grew there were zeros; past the end of one that shrank, the old bytes.
            let beyond = if new.len() < old.len() { old.get(at) } else { None };
            mixed.push(from.get(at).or(beyond).copied().unwrap_or(0));
        }
    }
    mixed
}
