//! A directory of manifests as a source of objects, for machines without an API server.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::object::{Key, Kind, Object};
use super::{Event, Feed, manifests};

/// How long changes are gathered before files are read: an editor or a volume's update makes several.
const SETTLE: Duration = Duration::from_millis(50);

/// How long a file is waited for while somebody has it open and writes to it.
const UNFINISHED: Duration = Duration::from_secs(10);

/// A directory of manifests cannot be read or watched.
#[derive(Debug, Error)]
#[error("the manifests in {}: {action}: {source}: name a readable directory with --manifests", path.display())]
pub struct FilesError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

/// The manifests of a directory, and changes to them as they happen.
pub struct Files {
    manifests: Manifests,
    watch: Watch,
}

impl Files {
    /// Begins to watch `directory`.
    ///
    /// # Errors
    /// [`FilesError`] if there is no such directory, or it cannot be watched.
    pub fn open(directory: &Path) -> Result<Self, FilesError> {
        let failed = |action| move |source| FilesError { path: directory.to_owned(), action, source };
        // The watch comes first, so that nothing goes unseen between reading and watching.
        let watch = Watch::new(directory).map_err(failed("watching"))?;
        fs::read_dir(directory).map_err(failed("reading"))?;
        info!(directory = %directory.display(), "reading Services from manifests");
        let manifests = Manifests { writing: watch.writing.clone(), ..Manifests::new(directory) };
        Ok(Self { manifests, watch })
    }

    /// Feeds what the files say until nobody takes it any more.
    pub async fn run(mut self, feed: Feed) {
        let first = self.manifests.scan();
        let listing = Kind::ALL.map(Event::Listing);
        let has_nodes = self.manifests.objects.keys().any(|(kind, _)| *kind == Kind::Node);
        let listed = Kind::ALL.map(|kind| match kind {
            // Files need not tell of nodes, which is not to say that there are none.
            Kind::Node if !has_nodes => Event::Refused(kind),
            kind => Event::Listed(kind),
        });
        let mut events: Vec<Event> = listing.into_iter().chain(first).chain(listed).collect();
        loop {
            for event in events {
                if feed.send(event).await.is_err() {
                    return;
                }
            }
            self.watch.changed().await;
            events = self.manifests.scan();
        }
    }
}

/// Tells when something in a directory has changed.
struct Watch {
    changes: Arc<Notify>,
    writing: Writing,
    _watcher: RecommendedWatcher,
}

impl Watch {
    fn new(directory: &Path) -> io::Result<Self> {
        let (changes, writing) = (Arc::new(Notify::new()), Writing::default());
        let (seen, written) = (changes.clone(), writing.clone());
        let handler = move |event: notify::Result<notify::Event>| {
            // Reading a file is an event too, and none of a change.
            let change = |kind: &EventKind| match kind {
                EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
                _ => true,
            };
            written.note(&event);
            // An error may hide any event.
            if event.map_or(true, |event| change(&event.kind)) {
                seen.notify_one();
            }
        };
        let failed = |error: notify::Error| match error.kind {
            notify::ErrorKind::Io(error) => error,
            _ => io::Error::other(error),
        };
        let mut watcher = notify::recommended_watcher(handler).map_err(failed)?;
        watcher.watch(directory, RecursiveMode::NonRecursive).map_err(failed)?;
        Ok(Self { changes, writing, _watcher: watcher })
    }

    /// Waits until something has changed, or a file has been waited for long enough.
    async fn changed(&self) {
        let changed = self.changes.notified();
        if self.writing.any() {
            let _ = timeout(UNFINISHED, changed).await;
        } else {
            changed.await;
        }
        sleep(SETTLE).await;
    }
}

/// The files that are being written in place, by name, since when: what is in them is not complete.
#[derive(Clone, Default)]
struct Writing(Arc<Mutex<HashMap<OsString, Instant>>>);

impl Writing {
    fn files(&self) -> MutexGuard<'_, HashMap<OsString, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, event: &notify::Result<notify::Event>) {
        let mut files = self.files();
        let Ok(event) = event.as_ref().map_err(|_| files.clear()) else { return };
        if event.need_rescan() {
            files.clear();
        }
        for name in event.paths.iter().filter_map(|path| path.file_name()) {
            match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) => {
                    files.entry(name.to_owned()).or_insert_with(Instant::now);
                }
                EventKind::Access(AccessKind::Close(AccessMode::Write))
                | EventKind::Modify(ModifyKind::Name(_))
                | EventKind::Remove(_) => {
                    files.remove(name);
                }
                _ => {}
            }
        }
    }

    fn any(&self) -> bool {
        !self.files().is_empty()
    }

    /// Whether a file is still to be waited for.
    fn contains(&self, path: &Path) -> bool {
        let mut files = self.files();
        let Some(name) = path.file_name() else { return false };
        let waiting = files.get(name).is_some_and(|since| since.elapsed() < UNFINISHED);
        if !waiting {
            files.remove(name);
        }
        waiting
    }
}

type Id = (Kind, Key);

/// The objects of a directory's files.
///
/// An object that is in several files is what the first of them by name says.
struct Manifests {
    directory: PathBuf,
    writing: Writing,
    files: BTreeMap<PathBuf, File>,
    objects: HashMap<Id, BTreeMap<PathBuf, Object>>,
}

#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    /// What it held when it could be parsed last.
    ids: BTreeSet<Id>,
}

/// What of a file changes when its content does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Ok(Self { inode: metadata.ino(), size: metadata.size(), changed })
    }
}

impl Manifests {
    fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            writing: Writing::default(),
            files: BTreeMap::new(),
            objects: HashMap::new(),
        }
    }

    /// Reads the files that have changed; what that changes of the objects. What is wrong is logged, and
    /// what a broken file held before stays.
    ///
    /// What an empty file held stays too: one that is written anew in place is empty at first.
    fn scan(&mut self) -> Vec<Event> {
        let paths = match self.paths() {
            Ok(paths) => paths,
            Err(error) => {
                error!(directory = %self.directory.display(), %error, "the manifests cannot be read");
                return Vec::new();
            }
        };
        let mut events = Vec::new();
        let vanished = self.files.keys().filter(|path| !paths.contains(*path));
        for path in vanished.cloned().collect::<Vec<_>>() {
            self.replace(&path, Vec::new(), &mut events);
            self.files.remove(&path);
        }
        for path in paths {
            let stamp = Stamp::of(&path).ok();
            let file = self.files.entry(path.clone()).or_default();
            if (stamp.is_some() && file.stamp == stamp) || self.writing.contains(&path) {
                continue;
            }
            file.stamp = stamp;
            match fs::read_to_string(&path) {
                Ok(text) if text.is_empty() && !file.ids.is_empty() => warn!(
                    "{} is empty: what the file said before stays until it is complete; delete it to remove \
                     its objects",
                    path.display()
                ),
                Ok(text) => match manifests::parse(&text) {
                    Ok(objects) => self.replace(&path, objects, &mut events),
                    Err(broken) => {
                        error!("{}:{broken}; what the file said before stays", path.display());
                    }
                },
                Err(error) => error!("{}: {error}; what the file said before stays", path.display()),
            }
        }
        events
    }

    fn paths(&self) -> io::Result<BTreeSet<PathBuf>> {
        let mut paths = BTreeSet::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            let manifest = path.extension().is_some_and(|it| it == "yaml" || it == "yml" || it == "json");
            if manifest && !hidden {
                paths.insert(path);
            }
        }
        Ok(paths)
    }

    fn replace(&mut self, path: &Path, objects: Vec<Object>, events: &mut Vec<Event>) {
        let mut now = BTreeMap::new();
        for object in objects {
            let id = (object.kind(), object.key().clone());
            if let Some(twice) = now.insert(id, object) {
                warn!("{}: {} {} is there twice", path.display(), twice.kind().name(), twice.key());
            }
        }
        let file = self.files.entry(path.to_owned()).or_default();
        let before = std::mem::replace(&mut file.ids, now.keys().cloned().collect());
        for id in before.difference(&file.ids.clone()) {
            self.set(path, id.clone(), None, events);
        }
        for (id, object) in now {
            self.set(path, id, Some(object), events);
        }
    }

    /// Notes what a file says of an object now.
    fn set(&mut self, path: &Path, id: Id, object: Option<Object>, events: &mut Vec<Event>) {
        let said = self.objects.entry(id.clone()).or_default();
        let before = said.first_key_value().map(|(_, object)| object.clone());
        match object {
            Some(object) => said.insert(path.to_owned(), object),
            None => said.remove(path),
        };
        if let (Some((first, _)), true) = (said.first_key_value(), said.len() > 1) {
            let (kind, key) = (id.0.name(), &id.1);
            warn!("{kind} {key} is in {} files: {} has the say", said.len(), first.display());
        }
        match said.first_key_value().map(|(_, object)| object) {
            now if now == before.as_ref() => {}
            Some(now) => events.push(Event::Apply(now.clone())),
            None => events.push(Event::Delete(id.0, id.1.clone())),
        }
        if said.is_empty() {
            self.objects.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::cluster::feed;

    fn service(name: &str, ip: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n---\n"
        )
    }

    fn summary(events: &[Event]) -> Vec<String> {
        let one = |event: &Event| match event {
            Event::Apply(Object::Service(service)) => format!("{} {}", service.key, service.cluster_ips[0]),
            Event::Delete(_, key) => format!("{key} gone"),
            other => format!("{other:?}"),
        };
        events.iter().map(one).collect()
    }

    #[test]
    fn a_change_of_a_file_is_a_change_of_its_objects() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        let mut manifests = Manifests::new(directory.path());
        fs::write(&path, service("web", "10.96.0.1") + &service("api", "10.96.0.2")).unwrap();
        assert_eq!(summary(&manifests.scan()), ["default/api 10.96.0.2", "default/web 10.96.0.1"]);
        assert_eq!(manifests.scan(), []);
        fs::write(&path, service("web", "10.96.0.11") + &service("new", "10.96.0.3")).unwrap();
        assert_eq!(
            summary(&manifests.scan()),
            ["default/api gone", "default/new 10.96.0.3", "default/web 10.96.0.11"]
        );
        fs::remove_file(&path).unwrap();
        assert_eq!(summary(&manifests.scan()), ["default/new gone", "default/web gone"]);
    }

    #[test]
    fn what_a_broken_file_said_before_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a.yaml"), directory.path().join("b.yaml"));
        let mut manifests = Manifests::new(directory.path());
        fs::write(&a, service("web", "10.96.0.1")).unwrap();
        manifests.scan();
        fs::write(&a, "kind: [").unwrap();
        fs::write(&b, service("api", "10.96.0.2")).unwrap();
        assert_eq!(summary(&manifests.scan()), ["default/api 10.96.0.2"], "only that file is held back");
        fs::write(&a, service("web", "10.96.0.3")).unwrap();
        assert_eq!(summary(&manifests.scan()), ["default/web 10.96.0.3"]);
    }

    #[test]
    fn the_first_file_has_the_say() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a.yaml"), directory.path().join("b.yml"));
        let mut manifests = Manifests::new(directory.path());
        fs::write(&b, service("web", "10.96.0.2")).unwrap();
        manifests.scan();
        fs::write(&a, service("web", "10.96.0.1")).unwrap();
        assert_eq!(summary(&manifests.scan()), ["default/web 10.96.0.1"]);
        fs::remove_file(&a).unwrap();
        assert_eq!(summary(&manifests.scan()), ["default/web 10.96.0.2"]);
    }

    #[test]
    fn other_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("notes.txt"), "kind: [").unwrap();
        fs::write(directory.path().join(".hidden.yaml"), "kind: [").unwrap();
        let manifests = Manifests::new(directory.path());
        assert_eq!(manifests.paths().unwrap(), BTreeSet::new());
    }

    #[tokio::test]
    async fn changes_are_seen_as_they_happen() {
        let directory = tempfile::tempdir().unwrap();
        let (feed, mut events) = feed();
        let task = tokio::spawn(Files::open(directory.path()).unwrap().run(feed));
        for _ in 0..2 * Kind::ALL.len() {
            events.recv().await.unwrap();
        }
        // As an atomic writer does it.
        let (draft, path) = (directory.path().join("draft"), directory.path().join("a.yaml"));
        fs::write(&draft, service("web", "10.96.0.1")).unwrap();
        fs::rename(&draft, &path).unwrap();
        let (_, event) = events.recv().await.unwrap();
        assert_eq!(summary(&[event]), ["default/web 10.96.0.1"]);
        drop(events);
        fs::remove_file(&path).unwrap();
        task.await.unwrap();
    }

    /// As a shell does it: `kubectl get services -o yaml >web.yaml`.
    #[tokio::test]
    async fn a_file_that_is_being_written_waits_for_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let (feed, mut events) = feed();
        let path = directory.path().join("a.yaml");
        fs::write(&path, service("api", "10.96.0.1") + &service("web", "10.96.0.2")).unwrap();
        tokio::spawn(Files::open(directory.path()).unwrap().run(feed));
        for _ in 0..2 * Kind::ALL.len() + 2 {
            events.recv().await.unwrap();
        }
        let mut file = fs::File::create(&path).unwrap();
        sleep(SETTLE * 4).await;
        file.write_all(service("api", "10.96.0.3").as_bytes()).unwrap();
        sleep(SETTLE * 4).await;
        assert!(events.try_recv().is_err(), "it is not complete yet");
        // The others do not wait.
        fs::write(directory.path().join("b.yaml"), service("other", "10.96.0.4")).unwrap();
        let (_, event) = events.recv().await.unwrap();
        assert_eq!(summary(&[event]), ["default/other 10.96.0.4"]);
        file.write_all(service("web", "10.96.0.2").as_bytes()).unwrap();
        drop(file);
        let (_, event) = events.recv().await.unwrap();
        assert_eq!(summary(&[event]), ["default/api 10.96.0.3"]);
        sleep(SETTLE * 4).await;
        assert!(events.try_recv().is_err(), "all else is as it was");
    }

    #[test]
    fn an_empty_file_is_unfinished_and_one_without_objects_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        let mut manifests = Manifests::new(directory.path());
        fs::write(&path, service("web", "10.96.0.1")).unwrap();
        manifests.scan();
        fs::write(&path, "").unwrap();
        assert_eq!(manifests.scan(), []);
        fs::write(&path, "# nothing\n---\n").unwrap();
        assert_eq!(summary(&manifests.scan()), ["default/web gone"]);
        fs::write(&path, "").unwrap();
        assert_eq!(manifests.scan(), []);
        fs::write(&path, service("web", "10.96.0.1")).unwrap();
        assert_eq!(summary(&manifests.scan()), ["default/web 10.96.0.1"]);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = Files::open(Path::new("/no/such/directory")).err().unwrap();
        assert!(error.to_string().contains("/no/such/directory: watching: "), "{error}");
    }
}
