//! The demo's last part: the daemon killed, its successor, a pod that leaves the mesh, and an uninstallation.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::json;
use testbed::command::run;
use testbed::{teardown, wait_for};

use crate::cast::{Cast, SECRET};
use crate::story::Story;

/// Tells of the daemon's death and return, and of a pod that leaves.
pub(crate) fn tell(story: &mut Story, cast: &mut Cast) -> Result<()> {
    killed(story, cast)?;
    adopted(story, cast)?;
    left(story, cast)
}

fn curl_cart(cast: &Cast) -> Result<Vec<String>> {
    let url = format!("http://{}/", cast.pod("shop/cart")?.ip4());
    Ok(["curl", "-sS", "--max-time", "5", &url].map(str::to_owned).to_vec())
}

fn killed(story: &mut Story, cast: &mut Cast) -> Result<()> {
    story.chapter("The daemon of node a is killed with -9");
    let pid = cast.cluster.daemon("a")?.process()?.pid();
    let (web, cart) = (cast.pod("shop/web")?.ip4(), cast.pod("shop/cart")?.ip4());
    let words = curl_cart(cast)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let shown = format!("kill -9 {pid}\n{}", cast.shown("shop/web", &words));
    let tcpdump = cast.cluster.tcpdump("outage", &format!("host {web} and host {cart}"))?;
    story.claim("no new connection leaves shop/web", &shown, || {
        cast.cluster.daemon_mut("a")?.kill()?;
        cast.refused("shop/web", &words)
    });
    story.claim(
        "and nothing of it crossed the fabric in the clear",
        &format!("tcpdump -r {}", tcpdump.file().display()),
        || {
            let packets = tcpdump.stop()?;
            let ports = packets.tcp_ports()?;
            ensure!(ports.is_subset(&[15008].into()), "ports {ports:?} were spoken");
            ensure!(!packets.contain(SECRET), "the text {SECRET:?} was recorded in the clear");
            Ok(format!("{} packets, none to a port but 15008", packets.count("tcp")?))
        },
    );
    let pricing = format!("http://{}/", cast.pod("shop/pricing")?.ip4());
    let words = ["curl", "-sS", "--max-time", "5", &pricing];
    story.claim(
        "nor does anyone get into its pods",
        &cast.shown("street/stranger", &words),
        || cast.refused("street/stranger", &words),
    );
    Ok(())
}

fn adopted(story: &mut Story, cast: &mut Cast) -> Result<()> {
    story.chapter("A new daemon takes over what the old one left in the kernel");
    let words = curl_cart(cast)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let pins = cast.cluster.daemon("a")?.pin_dir().to_owned();
    story.claim(
        "it adopts the pinned programs and maps: none is made anew",
        &format!("find {} -type f -printf '%i %p\\n'", pins.display()),
        || {
            let before = pinned(&pins)?;
            ensure!(!before.is_empty(), "nothing was pinned in {}", pins.display());
            cast.cluster.daemon_mut("a")?.restart()?;
            let after = pinned(&pins)?;
            ensure!(before == after, "pins before: {before:?}\npins after: {after:?}");
            Ok(format!("{} maps and links, the same as before", after.len()))
        },
    );
    story.claim("shop/web is served as before", &cast.shown("shop/web", &words), || {
        wait_for("the page", testbed::wait::PATIENCE, || cast.ask("shop/web", &words))
    });
    Ok(())
}

fn left(story: &mut Story, cast: &Cast) -> Result<()> {
    story.chapter("A pod leaves the mesh and comes back");
    let (batch, meter) = (cast.pod("data/batch")?, cast.pod("data/meter")?);
    let to = format!("{}:7000", meter.ip4());
    let load = testbed::binaries::ours("load")?.display().to_string();
    let words = [&load, "rr", "--seconds", "0.2", "--to", &to];
    let socket = cast.cluster.daemon("a")?.socket().display().to_string();
    let (remove, add) =
        (json!({ "remove": { "uid": batch.uid() } }), json!({ "add": batch.registration() }));
    for (claim, name, request, port) in [
        ("un-enrolled, data/batch speaks plain TCP again, past the daemon", "left", remove, 7000),
        ("enrolled again, it speaks through the tunnel only", "back", add, 15008),
    ] {
        let ask = format!("echo '{request}' | socat -t 5 - UNIX-CONNECT:{socket}");
        let command = format!("{ask}\n{}", cast.shown("data/batch", &words));
        story.claim(claim, &command, || {
            let filter = format!("host {} and host {}", batch.ip4(), meter.ip4());
            let tcpdump = cast.cluster.tcpdump(name, &filter)?;
            let answer = run("sh", ["-c", &ask])?;
            ensure!(answer == "{\"ok\":true}\n", "the daemon answered {answer:?}");
            cast.ask("data/batch", &words)?;
            let packets = tcpdump.stop()?;
            let ports = packets.tcp_ports()?;
            ensure!(ports == [port].into(), "ports {ports:?} were spoken");
            Ok(format!("{} packets, all from or to port {port}", packets.count("tcp")?))
        });
    }
    Ok(())
}

/// Tells of the uninstallation, and takes the cluster down.
pub(crate) fn tell_the_end(story: &mut Story, mut cast: Cast) -> Result<()> {
    story.chapter("Uninstalled");
    let mut commands = String::new();
    for node in ["a", "b"] {
        let daemon = cast.cluster.daemon(node)?;
        let words = daemon.uninstallation();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        commands += &format!("kill {}\n", daemon.process()?.pid());
        commands += &format!("{}\n", daemon.place().shown(&words));
    }
    story.claim("`ztunnel uninstall` leaves nothing in the kernel", &commands, || {
        for node in ["a", "b"] {
            let daemon = cast.cluster.daemon_mut(node)?;
            daemon.stop()?;
            daemon.uninstall()?;
            let left = pinned(daemon.pin_dir())?;
            ensure!(left.is_empty(), "still pinned on node {node}: {left:?}");
        }
        Ok("no map and no link is pinned".to_owned())
    });
    let words = curl_cart(&cast)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    story.claim(
        "pods talk as if there had never been a mesh",
        &cast.shown("shop/web", &words),
        || cast.ask("shop/web", &words),
    );
    let plan = cast.cluster.plan();
    drop(cast);
    story.claim(
        "and the demo removes its namespaces, cgroups, mounts and files",
        "ip netns list; ls /run",
        || {
            let remains = teardown::remains(plan)?;
            ensure!(remains.is_empty(), "still there: {remains:?}");
            Ok("nothing is left".to_owned())
        },
    );
    Ok(())
}

/// The files of pinned objects under `folder`, each with its inode: a pin made anew has another.
fn pinned(folder: &Path) -> Result<BTreeSet<(PathBuf, u64)>> {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = BTreeSet::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(found) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(pinned(&entry.path())?);
        } else {
            found.insert((entry.path(), entry.metadata()?.ino()));
        }
    }
    Ok(found)
}
