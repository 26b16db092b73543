//! The demo's first half: ordinary traffic, whom the receiver sees, and what crosses the wire.

use anyhow::{Result, ensure};
use testbed::command::text;

use crate::cast::{Cast, SECRET};
use crate::story::Story;

/// Tells it.
pub(crate) fn tell(story: &mut Story, cast: &Cast) -> Result<()> {
    ordinary(story, cast)?;
    by_service(story, cast)?;
    seen_by_the_receiver(story, cast)?;
    on_the_wire(story, cast)
}

fn ordinary(story: &mut Story, cast: &Cast) -> Result<()> {
    story.chapter("Ordinary programs, unchanged, from pod to pod");
    let cart = cast.pod("shop/cart")?;
    for (family, host) in [("IPv4", cart.ip4().to_string()), ("IPv6", format!("[{}]", cart.ip6()))]
    {
        let url = format!("http://{host}/");
        let words = ["curl", "-sS", "--globoff", "--max-time", "5", &url];
        story.claim(
            &format!(
                "shop/web on node a fetches a page from nginx in shop/cart on node b over {family}"
            ),
            &cast.shown("shop/web", &words),
            || cast.ask("shop/web", &words),
        );
    }
    let url = format!("http://{}/", cast.pod("shop/pricing")?.ip4());
    let words = ["curl", "-sS", "--max-time", "5", &url];
    story.claim(
        "shop/web fetches a page from shop/pricing on the same node",
        &cast.shown("shop/web", &words),
        || cast.ask("shop/web", &words),
    );
    let meter = format!("{}:7003", cast.pod("data/meter")?.ip4());
    let load = testbed::binaries::ours("load")?.display().to_string();
    let words = [&load, "transfer", "--direction", "up", "--bytes", "50000000", "--to", &meter];
    story.claim(
        "50 MB arrive whole, and the checksum comes back after the sender has closed its half",
        &cast.shown("shop/web", &words),
        || Ok(cast.ask("shop/web", &words)?.trim().to_owned()),
    );
    Ok(())
}

fn by_service(story: &mut Story, cast: &Cast) -> Result<()> {
    story.chapter("Services by their names, at addresses that lead nowhere without the mesh");
    let (cart4, cart6) = cast.cluster.service("shop/cart")?;
    for (family, name, expected) in [
        ("-4", "cart", cart4.to_string()),
        ("-6", "cart.shop.svc.cluster.local", cart6.to_string()),
    ] {
        let url = format!("http://{name}/");
        let shown = "%{stderr}%{remote_ip}";
        let words = ["curl", "-sS", family, "--max-time", "5", "-w", shown, &url];
        story.claim(
            &format!("shop/web reaches service shop/cart as {name}, which is {expected}"),
            &cast.shown("shop/web", &words),
            || {
                let output = cast.pod("shop/web")?.run(&words)?;
                let (page, ip) = (text(&output.stdout), text(&output.stderr));
                ensure!(output.status.success() && ip.trim() == expected, "{}", ip.trim());
                Ok(format!("{} from {}", page.trim(), ip.trim()))
            },
        );
    }
    names(story, cast)?;
    let words = ["redis-cli", "-h", "redis", "INCRBY", "visits", "42"];
    story.claim(
        "data/batch counts in redis, a service of its own namespace",
        &cast.shown("data/batch", &words),
        || {
            let answer = cast.ask("data/batch", &words)?;
            ensure!(answer.trim() == "42", "redis answered {answer:?}");
            Ok(format!("(integer) {}", answer.trim()))
        },
    );
    let words = ["sh", "-c", "echo is anybody there | socat -t 5 - TCP4:echo.data:7"];
    story.claim(
        "socat in data/echo sends back a line through service data/echo",
        &cast.shown("data/batch", &words),
        || {
            let answer = cast.ask("data/batch", &words)?;
            ensure!(answer == "is anybody there\n", "it answered {answer:?}");
            Ok(answer)
        },
    );
    let words = ["iperf3", "--client", "meter.data", "--time", "1", "--format", "M"];
    story.claim(
        "iperf3 measures through service data/meter",
        &cast.shown("data/batch", &words),
        || {
            let said = cast.ask("data/batch", &words)?;
            let receiver = said
                .lines()
                .find(|line| line.ends_with("receiver"))
                .unwrap_or("no line of the receiver");
            ensure!(receiver.ends_with("receiver"), "{receiver}");
            Ok(receiver.trim().to_owned())
        },
    );
    Ok(())
}

/// Who answers which name.
fn names(story: &mut Story, cast: &Cast) -> Result<()> {
    let server = cast.pod("street/dns")?.ip4();
    for (asked, name, status) in [
        ("the mesh's names are answered in the pod", "cart.shop.svc.cluster.local", "NOERROR"),
        ("others by the pod's own server, dnsmasq", "www.outside.test", "NOERROR"),
        ("and what it says is passed on", "absent.cluster.local", "NXDOMAIN"),
    ] {
        let words = ["dig", "+tries=1", name];
        story.claim(&format!("{asked}: {name}"), &cast.shown("shop/web", &words), || {
            let said = cast.ask("shop/web", &words)?;
            ensure!(said.contains(&format!("status: {status}")), "{said}");
            ensure!(said.contains(&format!("SERVER: {server}#53")), "{said}");
            let record = said.lines().find(|line| line.starts_with(name));
            let time = said.lines().find(|line| line.starts_with(";; Query time"));
            Ok(format!("{status} {}{}", record.unwrap_or_default(), time.unwrap_or_default()))
        });
    }
    Ok(())
}

fn seen_by_the_receiver(story: &mut Story, cast: &Cast) -> Result<()> {
    story.chapter("Whom the receiver sees");
    let (web, cart) = (cast.pod("shop/web")?, cast.pod("shop/cart")?);
    for (host, expected) in [
        (cart.ip4().to_string(), web.ip4().to_string()),
        (format!("[{}]", cart.ip6()), web.ip6().to_string()),
    ] {
        let url = format!("http://{host}/");
        let words =
            ["curl", "-sS", "--globoff", "--max-time", "5", "-o", "/dev/null", "-D", "-", &url];
        story.claim(
            &format!("nginx sees {expected}, the address of shop/web, and no proxy"),
            &cast.shown("shop/web", &words),
            || {
                let headers = cast.ask("shop/web", &words)?;
                let client = headers
                    .lines()
                    .find(|line| line.starts_with("X-Client:"))
                    .unwrap_or("no X-Client header");
                ensure!(client.trim() == format!("X-Client: {expected}"), "{client}");
                Ok(client.trim().to_owned())
            },
        );
    }
    Ok(())
}

fn on_the_wire(story: &mut Story, cast: &Cast) -> Result<()> {
    story.chapter("The same crossing, seen on the fabric between the nodes");
    let (web, cart) = (cast.pod("shop/web")?, cast.pod("shop/cart")?);
    let words = ["curl", "-sS", "-4", "--max-time", "5", "http://cart.shop/"];
    let filter = format!("host {} and host {}", web.ip4(), cart.ip4());
    let command = format!("{}\n{}", cast.watch(&filter)?, cast.shown("shop/web", &words));
    story.claim(
        "between web and cart only port 15008 is spoken, and the page's text is nowhere in it",
        &command,
        || {
            let tcpdump = cast.cluster.tcpdump("mesh", &filter)?;
            for _ in 0..5 {
                let page = cast.ask("shop/web", &words)?;
                ensure!(page.contains(SECRET), "the page was {page:?}");
            }
            let packets = tcpdump.stop()?;
            let (ports, count) = (packets.tcp_ports()?, packets.count("tcp")?);
            ensure!(count > 0, "no packet was recorded");
            ensure!(ports == [15008].into(), "ports {ports:?} were spoken");
            ensure!(!packets.contain(SECRET), "the text {SECRET:?} was recorded in the clear");
            Ok(format!("{count} packets, all from or to port 15008, none with {SECRET:?}"))
        },
    );
    let stranger = cast.pod("street/stranger")?;
    let url = format!("http://{}/", cart.ip4());
    let words = ["curl", "-sS", "--max-time", "5", &url];
    let filter = format!("host {} and host {}", stranger.ip4(), cart.ip4());
    let command = format!("{}\n{}", cast.watch(&filter)?, cast.shown("street/stranger", &words));
    story.claim(
        "by contrast: the stranger, who is not in the mesh, is read by anyone",
        &command,
        || {
            let tcpdump = cast.cluster.tcpdump("street", &filter)?;
            let output = stranger.run(&words)?;
            ensure!(output.status.success(), "{}", text(&output.stderr).trim());
            let packets = tcpdump.stop()?;
            let count = packets.count("tcp port 80")?;
            ensure!(count > 0, "no packet was recorded");
            ensure!(packets.contain(SECRET), "the text {SECRET:?} was not recorded");
            Ok(format!("{count} packets on port 80, with {SECRET:?} in the clear"))
        },
    );
    Ok(())
}
