//! A directory of manifests as a source of objects, for machines without an API server.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::object::{Key, Kind, Object};
use super::{Event, Feed, manifests};

/// How long changes are gathered before files are read: an editor or a volume's update makes several.
const SETTLE: Duration = Duration::from_millis(50);

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
        Ok(Self { manifests: Manifests::new(directory), watch })
    }

    /// Feeds what the files say until nobody takes it any more.
    pub async fn run(mut self, feed: Feed) {
        let first = self.manifests.scan();
        let listing = Kind::ALL.map(Event::Listing);
        let listed = Kind::ALL.map(Event::Listed);
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
    _watcher: RecommendedWatcher,
}

impl Watch {
    fn new(directory: &Path) -> io::Result<Self> {
        let changes = Arc::new(Notify::new());
        let seen = changes.clone();
        let handler = move |event: notify::Result<notify::Event>| {
            // Reading a file is an event too, and none of a change.
            let change = |kind: &EventKind| match kind {
                EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
                _ => true,
            };
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
        Ok(Self { changes, _watcher: watcher })
    }

    async fn changed(&self) {
        self.changes.notified().await;
        sleep(SETTLE).await;
    }
}

type Id = (Kind, Key);

/// The objects of a directory's files.
///
/// An object that is in several files is what the first of them by name says.
struct Manifests {
    directory: PathBuf,
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
        Self { directory: directory.to_owned(), files: BTreeMap::new(), objects: HashMap::new() }
    }

    /// Reads the files that have changed; what that changes of the objects. What is wrong is logged, and
    /// what a broken file held before stays.
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
            if stamp.is_some() && file.stamp == stamp {
                continue;
            }
            file.stamp = stamp;
            match fs::read_to_string(&path) {
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
        for _ in 0..4 {
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

    #[test]
    fn a_missing_directory_is_named() {
        let error = Files::open(Path::new("/no/such/directory")).err().unwrap();
        assert!(error.to_string().contains("/no/such/directory: watching: "), "{error}");
    }
}
