//! The demo's waypoint: a stock Envoy that pilot tells what to do, between pods of which neither knows of it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testbed::{Waypoint, binaries, manifests, wait_for};

use crate::cast::{Cast, SECRET};
use crate::story::Story;

/// How soon a change on disk must be in force, beside everything else that runs here.
const SOON: Duration = Duration::from_secs(10);
/// What the waypoint writes into `server` of every answer.
const ENVOY: &str = "server: istio-envoy";
const FRONT: &str = "http://pricing.shop/";
const ADMIN: &str = "http://pricing.shop/admin";

/// Tells it, and gives the waypoint, which is to run on.
pub(crate) fn tell(story: &mut Story, cast: &Cast) -> Result<Option<Waypoint>> {
    story.chapter("Rules for requests: a waypoint");
    if let Err(error) = binaries::envoy() {
        story.say(&format!("{error:#}: this chapter is left out."));
        return Ok(None);
    }
    story.say("A Gateway makes shop/waypoint, a stock Envoy, the waypoint of service shop/pricing; pilot tells it everything.");
    cast.cluster.apply("waypoint.yaml", &manifests::waypoint("shop/waypoint"))?;
    let waypoint = Waypoint::of(&cast.cluster, "shop/waypoint")?;
    let words = ["curl", "-sSi", "--max-time", "5", FRONT];
    story.claim("requests pass it", &cast.shown("shop/web", &words), || {
        answered(cast, &words, &["HTTP/1.1 200", ENVOY, "the-prices-of-today"])
    });
    let words = ["curl", "-sSi", "--max-time", "5", "-H", "x-to: cart", FRONT];
    let shown = cast.shown("shop/web", &words);
    story.claim("an HTTPRoute sends those with a header elsewhere", &shown, || {
        let route = manifests::header_route("shop/pricing", "x-to", "cart", "cart");
        cast.cluster.apply("route.yaml", &route)?;
        answered(cast, &words, &["HTTP/1.1 200", ENVOY, SECRET])
    });
    let words = ["curl", "-sSi", "--max-time", "5", ADMIN];
    let shown = cast.shown("shop/web", &words);
    story.claim("an AuthorizationPolicy refuses a path with 403", &shown, || {
        cast.cluster.apply("paths.yaml", &manifests::deny_paths("shop/pricing", "/admin*"))?;
        answered(cast, &words, &["HTTP/1.1 403", ENVOY, "RBAC: access denied"])
    });
    Ok(Some(waypoint))
}

/// Asks from shop/web until the answer has all of `parts`; gives its first line and the server.
fn answered(cast: &Cast, words: &[&str], parts: &[&str]) -> Result<String> {
    wait_for("the answer", SOON, || {
        let said = cast.ask("shop/web", words)?;
        let missing = parts.iter().find(|part| !said.contains(**part));
        ensure!(missing.is_none(), "the answer has no {missing:?}: {said}");
        let first = said.lines().next().context("the answer is empty")?;
        Ok(format!(
            "{first}
{}",
            parts[1..].join(
                "
"
            )
        ))
    })
}
