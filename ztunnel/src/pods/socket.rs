//! The registry's Unix socket: `add` and `remove`, one JSON object per line, each answered by one line.
//!
//! In: `{"add": <record>}` or `{"remove": {"uid": "…"}}`. Out: `{"ok":true}` once the pod's traffic is captured (or
//! released), or `{"error":"…"}`. Who may open the socket may add pods: it is the owner's alone.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    rc::Rc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::{AddError, Announced, PodRecord, PodTable, PodUid, folder::Folder};

/// The longest request, in bytes.
const MAX_REQUEST: u64 = 16 * 1024;
/// How long a caller may take for one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Request {
    Add(PodRecord),
    #[serde(rename_all = "camelCase")]
    Remove {
        uid: PodUid,
    },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Ok(bool),
    Error(String),
}

/// Opens the socket. A file that a former daemon left there is replaced.
///
/// # Errors
/// The system's; `AlreadyExists` if something that is no socket has the name.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file is no socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers callers until the listener fails. Runs on the control thread's `LocalSet`.
pub async fn serve<T: PodTable + 'static>(listener: UnixListener, table: Rc<T>, folder: Folder) {
    loop {
        match listener.accept().await {
            Ok((caller, _)) => {
                let (table, folder) = (table.clone(), folder.clone());
                tokio::task::spawn_local(async move {
                    if let Err(error) = answer_all(caller, &*table, &folder).await {
                        tracing::debug!(%error, "pod registry caller left");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors: accepting at once again would spin.
                tracing::warn!(%error, "pod registry cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer_all(caller: UnixStream, table: &impl PodTable, folder: &Folder) -> io::Result<()> {
    let (read, mut write) = caller.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        let request = async { (&mut read).take(MAX_REQUEST).read_line(&mut line).await };
        if timeout(REQUEST_LIMIT, request).await?? == 0 {
            return Ok(());
        }
        let answer = match answer(&line, table, folder) {
            Ok(()) => Answer::Ok(true),
            Err(reason) => Answer::Error(reason),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        if !line.ends_with('\n') {
            return Ok(());
        }
    }
}

fn answer(line: &str, table: &impl PodTable, folder: &Folder) -> Result<(), String> {
    match serde_json::from_str(line) {
        Ok(Request::Add(record)) => add(&record, table, folder).map_err(|error| error.to_string()),
        Ok(Request::Remove { uid }) => {
            table.remove(&uid);
            folder.delete(&uid).map_err(|error| format!("{}: {error}", folder.file(&uid).display()))
        }
        Err(error) => Err(format!("bad request: {error}")),
    }
}

/// The record is kept first: a daemon that dies between the two captures the pod when it is back. A refused change
/// leaves the former record in place.
fn add(record: &PodRecord, table: &impl PodTable, folder: &Folder) -> Result<(), AddError> {
    let pod = Announced::open(record)?;
    let keep = |record: &PodRecord| {
        let path = folder.file(&record.uid);
        folder.save(record).map_err(|source| AddError::Record { path, source })
    };
    let former = folder.find(&record.uid);
    keep(record)?;
    table.add(pod).inspect_err(|_| {
        let back = match &former {
            Some(former) => keep(former).map_err(|error| error.to_string()),
            None => folder.delete(&record.uid).map_err(|error| error.to_string()),
        };
        if let Err(error) = back {
            tracing::warn!(uid = %record.uid, error, "the record of a refused pod stays");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::stand_in::StandIn;

    async fn ask(caller: &mut UnixStream, request: &str) -> String {
        caller.write_all(format!("{request}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        BufReader::new(caller).read_line(&mut answer).await.unwrap();
        answer.trim_end().to_owned()
    }

    fn add(uid: &str, name: &str, netns: &str) -> String {
        format!(
            r#"{{"add":{{"uid":"{uid}","namespace":"shop","name":"{name}","netns":"{netns}"}}}}"#
        )
    }

    #[tokio::test(flavor = "current_thread")]
    async fn pods_are_added_and_removed_and_refusals_say_why() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pods.sock");
        let folder = Folder::open(&directory.path().join("pods")).unwrap();
        let table = Rc::new(StandIn::default());
        let local = tokio::task::LocalSet::new();
        local.spawn_local(serve(listen(&path).unwrap(), table.clone(), folder.clone()));
        local
            .run_until(async {
                let mut caller = UnixStream::connect(&path).await.unwrap();
                assert_eq!(
                    ask(&mut caller, &add("a", "web", "/proc/self/ns/net")).await,
                    r#"{"ok":true}"#
                );
                assert_eq!(table.uids().len(), 1);
                assert_eq!(folder.load().unwrap().0.len(), 1);

                let refused = ask(&mut caller, &add("b", "refused", "/proc/self/ns/net")).await;
                assert!(refused.contains("no address with a default route"), "{refused}");
                assert_eq!(folder.load().unwrap().0.len(), 1, "no record of a refused pod");

                let changed = ask(&mut caller, &add("a", "refused", "/proc/self/ns/net")).await;
                assert!(changed.contains("error"), "{changed}");
                assert_eq!(folder.load().unwrap().0[0].name, "web", "the former record is kept");

                let missing = ask(&mut caller, &add("c", "web", "/nowhere")).await;
                assert!(
                    missing.contains("opening the network namespace /nowhere: No such file"),
                    "{missing}"
                );
                let bad = ask(&mut caller, r#"{"drop":{}}"#).await;
                assert!(
                    bad.contains("unknown variant `drop`, expected `add` or `remove`"),
                    "{bad}"
                );

                assert_eq!(ask(&mut caller, r#"{"remove":{"uid":"a"}}"#).await, r#"{"ok":true}"#);
                assert!(table.uids().is_empty());
                assert!(folder.load().unwrap().0.is_empty());
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_socket_left_behind_is_replaced_and_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pods.sock");
        drop(listen(&path).unwrap());
        drop(listen(&path).unwrap());
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(listen(&file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
