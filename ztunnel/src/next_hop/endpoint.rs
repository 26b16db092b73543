//! Chooses an endpoint of a service.
//!
//! In: the service, the port, who asks, chance and experience. Out: a workload with the port and address to reach, or how many endpoints were
//! rejected for what.

use std::{fmt, net::IpAddr, sync::Arc};

use mesh::store::{
    Endpoints, Health, HealthPolicy, LoadBalancing, LoadBalancingMode, RoutingScope, Service,
    Snapshot, Workload,
};

use super::{
    NoRoute,
    address::{self, Address},
    choosing::{Choosing, Experience},
};

/// What is asked for.
pub(super) struct Wanted<'a> {
    pub(super) source: &'a Workload,
    pub(super) service: &'a Service,
    /// A port of the service.
    pub(super) port: u16,
    /// What the application dialed: its family is preferred.
    pub(super) dialed: IpAddr,
    pub(super) rule: PortRule,
    pub(super) reach: Reach,
}

/// How endpoints on other networks than the client's are reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reach {
    /// Through the gateways that they name.
    ThroughGateways,
    /// At their own addresses: they are such gateways, which everybody can dial.
    Directly,
}

/// Which endpoints serve a port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum PortRule {
    /// The service must list the port.
    Listed,
    /// The service must list the port, or the endpoint take all that its node brings it: a waypoint.
    ListedOrApplicationTunnel,
}

/// An endpoint, and how to reach it.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) workload: Arc<Workload>,
    /// The port the application listens on.
    pub(super) port: u16,
    /// None if it is on another network, behind the gateway that it names.
    pub(super) address: Option<Address>,
}

/// How a usable endpoint would be reached.
struct Way {
    port: u16,
    address: Option<Address>,
}

/// How many endpoints were not used, and for what.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Rejected {
    /// They are not ready.
    pub unhealthy: usize,
    /// They do not serve the port.
    pub without_port: usize,
    /// They have no address of a family that the service uses.
    pub without_address: usize,
    /// Their share of connections is nothing.
    pub without_capacity: usize,
    /// They are on another network and name no gateway.
    pub on_other_network: usize,
    /// They are not where the service wants its clients to stay.
    pub not_local: usize,
    /// They were tried for this connection.
    pub tried: usize,
}

/// Why one endpoint is not used.
enum Unusable {
    Unhealthy,
    WithoutPort,
    WithoutAddress,
    WithoutCapacity,
    OnOtherNetwork,
    NotLocal,
}

/// Chooses an endpoint: among the usable ones those that the service's mode prefers, of two of these by capacity the one
/// with fewer connections for its capacity. That keeps the busiest far nearer to the mean than one choice does
/// (Mitzenmacher: "The Power of Two Choices in Randomized Load Balancing", 2001).
///
/// Endpoints on other networks that name no gateway are left out; if there are only such, that is the error. Ejected ones
/// are left out while there is any other, at whatever distance.
pub(super) fn choose(
    snapshot: &Snapshot,
    wanted: &Wanted<'_>,
    choosing: &mut Choosing<'_>,
) -> Result<Chosen, NoRoute> {
    let Some(endpoints) = snapshot.endpoints(wanted.service) else {
        return Err(wanted.nobody(Rejected::default(), None));
    };
    if let Some(chosen) = wanted.near(endpoints, choosing) {
        return Ok(chosen);
    }
    let (standing, best) = match wanted.survey(endpoints, choosing.experience, Ejected::LeftOut) {
        Ok(best) => (Ejected::LeftOut, best),
        Err(_) => (Ejected::Taken, wanted.survey(endpoints, choosing.experience, Ejected::Taken)?),
    };
    let draw = |choosing: &mut Choosing<'_>| {
        let number = choosing.dice.below(best.capacity);
        wanted.counted(endpoints, choosing.experience, standing, best.rank, number)
    };
    let first = draw(choosing).expect("the survey counted the same endpoints");
    Ok(first.or_less_busy(choosing, draw))
}

/// How often a number is drawn before every endpoint is looked at. At most half of them are ejected.
const DRAWS: usize = 16;
/// How often a second endpoint is drawn that is not the first one.
const SECOND_DRAWS: usize = 3;

/// What becomes of ejected endpoints.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ejected {
    LeftOut,
    Taken,
}

/// The best rank among usable endpoints, and the sum of capacities of those that have it.
struct Best {
    rank: usize,
    capacity: u64,
}

impl Wanted<'_> {
    /// Draws from the nearest stretch of the list that gets traffic, without a look at the rest. None if it is not found
    /// out so, and every endpoint must be looked at.
    fn near(&self, endpoints: &Endpoints, choosing: &mut Choosing<'_>) -> Option<Chosen> {
        let LoadBalancing { mode, preferences, .. } = &self.service.load_balancing;
        let stretch = match mode {
            LoadBalancingMode::Any => endpoints.near(self.source, 0),
            LoadBalancingMode::Strict => endpoints.near(self.source, endpoints.depth()),
            LoadBalancingMode::Failover => {
                // Other networks are ordered among themselves: their nearest is no stretch.
                let last = usize::from(preferences.first() == Some(&RoutingScope::Network));
                let depths = (last..=endpoints.depth()).rev();
                let mut stretches = depths.map(|depth| endpoints.near(self.source, depth));
                stretches.find(|stretch| stretch.weight() > 0)?
            }
            LoadBalancingMode::Passthrough => return None,
        };
        let weight = stretch.weight();
        let draw = |choosing: &mut Choosing<'_>| {
            let workload = stretch.at(choosing.dice.below(weight))?;
            let way = self.usable(workload).ok()?;
            let taken = self.permits(workload, &way, choosing.experience, Ejected::LeftOut);
            taken.then(|| way.to(workload))
        };
        let first = (0..DRAWS).find_map(|_| draw(choosing))?;
        Some(first.or_less_busy(choosing, draw))
    }

    fn survey(
        &self,
        endpoints: &Endpoints,
        experience: &Experience<'_>,
        ejected: Ejected,
    ) -> Result<Best, NoRoute> {
        let mut rejected = Rejected::default();
        let mut elsewhere = None;
        let mut best: Option<Best> = None;
        for workload in endpoints.iter() {
            let way = match self.usable(workload) {
                Ok(way) => way,
                Err(why) => {
                    rejected.count(&why);
                    if let Unusable::OnOtherNetwork = why {
                        elsewhere = Some(workload);
                    }
                    continue;
                }
            };
            if !self.permits(workload, &way, experience, ejected) {
                rejected.tried += 1;
                continue;
            }
            let (rank, capacity) = (self.rank(workload), u64::from(workload.capacity));
            match &mut best {
                Some(held) if held.rank == rank => held.capacity += capacity,
                Some(held) if held.rank > rank => {}
                Some(_) | None => best = Some(Best { rank, capacity }),
            }
        }
        best.ok_or_else(|| self.nobody(rejected, elsewhere))
    }

    /// The usable endpoint of a rank whose share a number is in.
    fn counted(
        &self,
        endpoints: &Endpoints,
        experience: &Experience<'_>,
        ejected: Ejected,
        rank: usize,
        number: u64,
    ) -> Option<Chosen> {
        let mut left = number;
        endpoints.iter().find_map(|workload| {
            let way = self.usable(workload).ok()?;
            let counts =
                self.rank(workload) == rank && self.permits(workload, &way, experience, ejected);
            let capacity = if counts { u64::from(workload.capacity) } else { 0 };
            if left < capacity {
                return Some(way.to(workload));
            }
            left -= capacity;
            None
        })
    }

    /// Whether what the node has learnt speaks for trying an endpoint.
    fn permits(
        &self,
        workload: &Workload,
        way: &Way,
        experience: &Experience<'_>,
        ejected: Ejected,
    ) -> bool {
        let ip = match &way.address {
            Some(Address::Ip(ip)) => Some(*ip),
            Some(Address::Host(_)) | None => None,
        };
        !experience.tried.contains(&workload.uid)
            && (ejected == Ejected::Taken || !(experience.ejected)(workload, ip))
    }

    fn usable(&self, workload: &Workload) -> Result<Way, Unusable> {
        let balancing = &self.service.load_balancing;
        if workload.health == Health::Unhealthy
            && balancing.health_policy == HealthPolicy::OnlyHealthy
        {
            return Err(Unusable::Unhealthy);
        }
        if workload.capacity == 0 {
            return Err(Unusable::WithoutCapacity);
        }
        let port = self.target_port(workload).ok_or(Unusable::WithoutPort)?;
        let address = self.address(workload)?;
        if balancing.mode == LoadBalancingMode::Strict
            && !balancing.preferences.iter().all(|scope| shares(*scope, self.source, workload))
        {
            return Err(Unusable::NotLocal);
        }
        Ok(Way { port, address })
    }

    fn address(&self, workload: &Workload) -> Result<Option<Address>, Unusable> {
        if self.reach == Reach::ThroughGateways && workload.network != self.source.network {
            let gateway = workload.network_gateway.as_ref();
            return gateway.map(|_| None).ok_or(Unusable::OnOtherNetwork);
        }
        let address = address::of(workload, Some(self.service), self.dialed);
        address.map(Some).ok_or(Unusable::WithoutAddress)
    }

    /// The endpoint's own port, else the service's, else the same one where the application takes everything on one port.
    fn target_port(&self, workload: &Workload) -> Option<u16> {
        let tunnel = workload.application_tunnel;
        let served = self.service.port(self.port).is_some()
            || (self.rule == PortRule::ListedOrApplicationTunnel && tunnel.is_some());
        if !served {
            return None;
        }
        let membership = workload.membership(&self.service.key);
        let own = membership.and_then(|membership| membership.target_port(self.port));
        let takes_all = tunnel.is_some_and(|tunnel| tunnel.port.is_some());
        own.or_else(|| self.service.target_port(self.port))
            .map(Into::into)
            .or(takes_all.then_some(self.port))
    }

    fn rank(&self, workload: &Workload) -> usize {
        let LoadBalancing { mode, preferences, .. } = &self.service.load_balancing;
        match mode {
            LoadBalancingMode::Failover => failover_rank(preferences, self.source, workload),
            LoadBalancingMode::Any | LoadBalancingMode::Strict | LoadBalancingMode::Passthrough => {
                0
            }
        }
    }

    fn nobody(&self, rejected: Rejected, elsewhere: Option<&Arc<Workload>>) -> NoRoute {
        let (service, port) = (self.service.key.clone(), self.port);
        if self.reach == Reach::Directly {
            return NoRoute::NoGatewayEndpoint { gateway: service, port, rejected };
        }
        if self.rule == PortRule::ListedOrApplicationTunnel {
            return NoRoute::NoWaypointEndpoint { waypoint: service, port, rejected };
        }
        if self.service.port(port).is_none() {
            return NoRoute::UnknownServicePort { service, port };
        }
        let only_elsewhere =
            Rejected { on_other_network: rejected.on_other_network, ..Default::default() };
        match elsewhere {
            Some(workload) if rejected == only_elsewhere => NoRoute::OtherNetwork {
                target: workload.uid.clone(),
                network: workload.network.clone(),
            },
            Some(_) | None => NoRoute::NoEndpoint { service, port, rejected },
        }
    }
}

impl Chosen {
    /// This one or a second one: that with fewer connections for its capacity, this one if they are even.
    fn or_less_busy(
        self,
        choosing: &mut Choosing<'_>,
        mut draw: impl FnMut(&mut Choosing<'_>) -> Option<Self>,
    ) -> Self {
        let second = (0..SECOND_DRAWS)
            .find_map(|_| draw(choosing).filter(|one| one.workload.uid != self.workload.uid));
        let Some(second) = second else { return self };
        let open = |one: &Self| u64::from((choosing.experience.open)(&one.workload));
        let capacity = |one: &Self| u64::from(one.workload.capacity);
        if open(&second) * capacity(&self) < open(&self) * capacity(&second) {
            second
        } else {
            self
        }
    }
}

/// How many of the preferences are met, counted from the first until one is not. A network that comes first outweighs all
/// others together, and those still order the endpoints of other networks.
fn failover_rank(preferences: &[RoutingScope], source: &Workload, endpoint: &Workload) -> usize {
    let mut rank = 0;
    for (index, scope) in preferences.iter().enumerate() {
        let outweighs = index == 0 && *scope == RoutingScope::Network;
        match (shares(*scope, source, endpoint), outweighs) {
            (true, true) => rank += preferences.len(),
            (true, false) => rank += 1,
            (false, true) => {}
            (false, false) => break,
        }
    }
    rank
}

fn shares(scope: RoutingScope, a: &Workload, b: &Workload) -> bool {
    scope.of(a) == scope.of(b)
}

impl Way {
    fn to(self, workload: &Arc<Workload>) -> Chosen {
        Chosen { workload: workload.clone(), port: self.port, address: self.address }
    }
}

impl Rejected {
    fn count(&mut self, why: &Unusable) {
        match why {
            Unusable::Unhealthy => self.unhealthy += 1,
            Unusable::WithoutPort => self.without_port += 1,
            Unusable::WithoutAddress => self.without_address += 1,
            Unusable::WithoutCapacity => self.without_capacity += 1,
            Unusable::OnOtherNetwork => self.on_other_network += 1,
            Unusable::NotLocal => self.not_local += 1,
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = [
            (self.unhealthy, "unhealthy"),
            (self.without_port, "without the port"),
            (self.without_address, "without an address"),
            (self.without_capacity, "without capacity"),
            (self.on_other_network, "on another network without a gateway"),
            (self.not_local, "not local"),
            (self.tried, "tried in vain"),
        ];
        let mut separator = "";
        for (count, reason) in reasons.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{count} {reason}")?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("it has none") } else { Ok(()) }
    }
}
