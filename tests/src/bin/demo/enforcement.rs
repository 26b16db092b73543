//! The demo's middle: a policy edited on disk, its refusal explained three times in one word, and STRICT mode.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use testbed::manifests::{authorization_policy, from_principal, peer_authentication};
use testbed::{binaries, wait_for};

use crate::cast::Cast;
use crate::story::Story;

/// How soon a change on disk must be in force on every node.
const PROMPT: Duration = Duration::from_secs(1);
/// The word for "ALLOW policies apply, and none matched", in the log, the metrics and the command line.
const REASON: &str = "policy_no_allow";

/// Tells it.
pub(crate) fn tell(story: &mut Story, cast: &Cast) -> Result<()> {
    policy(story, cast)?;
    explained(story, cast)?;
    restored(story, cast)?;
    strict(story, cast)
}

/// Pods of the mesh ask for the cart by its name.
const CURL_CART: [&str; 5] = ["curl", "-sS", "--max-time", "5", "http://cart.shop/"];

fn policy(story: &mut Story, cast: &Cast) -> Result<()> {
    story.chapter("Who may talk to whom: a policy edited on disk");
    let yaml = authorization_policy(
        "shop/cart-callers",
        "ALLOW",
        "cart",
        &from_principal("shop", "pricing"),
    );
    let path = cast.cluster.manifest_dir().join("policy.yaml");
    story.say("Only the service account of shop/pricing may call shop/cart:");
    yaml.lines().skip(1).for_each(|line| story.say(&format!("    {line}")));
    let words = CURL_CART;
    let shown = format!("# save this as {}\n{}", path.display(), cast.shown("shop/web", &words));
    story.claim("within a second shop/web is refused", &shown, || {
        cast.cluster.apply("policy.yaml", &yaml)?;
        let saved = Instant::now();
        let said =
            wait_for("the refusal", Duration::from_secs(10), || cast.refused("shop/web", &words))?;
        let took = saved.elapsed();
        ensure!(took <= PROMPT, "it took {took:?}");
        Ok(format!("{said}\n{} ms after the file was saved", took.as_millis()))
    });
    story.claim("shop/pricing is not", &cast.shown("shop/pricing", &words), || {
        cast.ask("shop/pricing", &words)
    });
    Ok(())
}

fn explained(story: &mut Story, cast: &Cast) -> Result<()> {
    story.chapter(&format!("The refusal has one reason everywhere: {REASON}"));
    let daemon = cast.cluster.daemon("b")?;
    // The refusal seen first may have been an open connection's, which the change of policy cut for another reason.
    let words = CURL_CART;
    let log = daemon.place().logs.join("node-b.log");
    let shown = format!("{}\ngrep {REASON} {}", cast.shown("shop/web", &words), log.display());
    story.claim("in the daemon's log", &shown, || {
        cast.refused("shop/web", &words)?;
        let line = wait_for("the line", PROMPT, || {
            let log = daemon.log()?;
            Ok(log
                .lines()
                .rfind(|line| line.contains(REASON))
                .context("no line has it")?
                .to_owned())
        })?;
        ensure!(line.contains("shop/cart-callers"), "it does not name the policy: {line}");
        Ok(line)
    });
    let words = ["curl", "-s", "http://127.0.0.1:15020/metrics"];
    story.claim(
        "in its metrics",
        &format!("{} | grep {REASON}", daemon.place().shown(&words)),
        || {
            wait_for("the series", PROMPT, || {
                let label = format!("reason=\"{REASON}\"");
                let metrics = daemon.metrics()?;
                let found = metrics.lines().find(|line| line.contains(&label));
                Ok(found.context("no series has it")?.to_owned())
            })
        },
    );
    let meshctl = binaries::ours("meshctl")?.display().to_string();
    let to = format!("{}:80", cast.pod("shop/cart")?.ip4());
    let words = [&meshctl, "explain", "--from", "shop/web", "--to", &to];
    story.claim(
        "and in the answer to `explain`, from the daemon's live state",
        &daemon.place().shown(&words),
        || {
            let output = daemon.place().run(&words)?;
            let said = testbed::command::text(&output.stdout);
            if !said.contains(REASON) || !said.contains("cart-callers") {
                bail!("{}{}", said, testbed::command::text(&output.stderr));
            }
            Ok(said.trim().to_owned())
        },
    );
    Ok(())
}

fn restored(story: &mut Story, cast: &Cast) -> Result<()> {
    let words = CURL_CART;
    let path = cast.cluster.manifest_dir().join("policy.yaml");
    let shown = format!("rm {}\n{}", path.display(), cast.shown("shop/web", &words));
    story.claim("the file removed, shop/web is served again within a second", &shown, || {
        cast.cluster.delete("policy.yaml")?;
        let removed = Instant::now();
        let page = wait_for("the page", Duration::from_secs(10), || cast.ask("shop/web", &words))?;
        let took = removed.elapsed();
        ensure!(took <= PROMPT, "it took {took:?}");
        Ok(format!("{page}\n{} ms after the file was removed", took.as_millis()))
    });
    Ok(())
}

fn strict(story: &mut Story, cast: &Cast) -> Result<()> {
    story.chapter("STRICT: no identity, no entrance");
    // The stranger knows no names of the mesh.
    let url = format!("http://{}/", cast.pod("shop/cart")?.ip4());
    let words = ["curl", "-sS", "--max-time", "5", &url];
    story.claim(
        "so far the stranger's clear text is let in (PERMISSIVE)",
        &cast.shown("street/stranger", &words),
        || cast.ask("street/stranger", &words),
    );
    let yaml = peer_authentication("shop", "STRICT");
    let path = cast.cluster.manifest_dir().join("strict.yaml");
    yaml.lines().skip(1).for_each(|line| story.say(&format!("    {line}")));
    let shown =
        format!("# save this as {}\n{}", path.display(), cast.shown("street/stranger", &words));
    story.claim("with mode STRICT the stranger is refused within a second", &shown, || {
        cast.cluster.apply("strict.yaml", &yaml)?;
        let saved = Instant::now();
        let said = wait_for("the refusal", Duration::from_secs(10), || {
            cast.refused("street/stranger", &words)
        })?;
        let took = saved.elapsed();
        ensure!(took <= PROMPT, "it took {took:?}");
        Ok(format!("{said}\n{} ms after the file was saved", took.as_millis()))
    });
    story.claim(
        "and shop/web, which has a certificate, is served",
        &cast.shown("shop/web", &CURL_CART),
        || cast.ask("shop/web", &CURL_CART),
    );
    let shown = format!("rm {}\n{}", path.display(), cast.shown("street/stranger", &words));
    story.claim("the file removed, the stranger is let in again within a second", &shown, || {
        cast.cluster.delete("strict.yaml")?;
        let removed = Instant::now();
        let page =
            wait_for("the page", Duration::from_secs(10), || cast.ask("street/stranger", &words))?;
        let took = removed.elapsed();
        ensure!(took <= PROMPT, "it took {took:?}");
        Ok(format!("{page}\n{} ms after the file was removed", took.as_millis()))
    });
    Ok(())
}
