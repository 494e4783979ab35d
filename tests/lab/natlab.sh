#!/usr/bin/env bash
# natlab.sh - a NAT and WAN test bed in network namespaces (root, nft, ip, cc).
#
#   natlab.sh [OPTION...] up SPEC...      SPEC = MODE[:ONE_WAY_MS[:MBIT]]; host i is "hi"
#   natlab.sh [OPTION...] exec HOST CMD.. run CMD in h1, h2, ..., or in s (public server 203.0.113.100)
#   natlab.sh [OPTION...] link HOST WORDS talk to that host's delay link: delay 40 | loss 2 | jitter 5 | rate 20 | down | up | stats
#   natlab.sh [OPTION...] status | down
#
# OPTION  -p PREFIX  namespaces are called PREFIX-h1, ... (default nl); several labs may be up at once
#         -r FOLDER  where its pids, logs and command pipes are kept (default natlab.run beside this file)
#         -s         single packets: no segmentation offload on the links; slower, but loss then acts on each packet
#
#   h1 10.1.0.2 --veth-- g1 (NAT, 203.0.113.1) ==delay link==\
#   h2 10.2.0.2 --veth-- g2 (NAT, 203.0.113.2) ==delay link== net --veth-- s 203.0.113.100
#
# MODE  open      public address, no NAT
#       full      endpoint-independent mapping and filtering (easy)
#       cone      port-preserving masquerade, address-and-port-dependent filtering, drops the unsolicited (home router)
#       leaky     as cone, but unsolicited packets reach the gateway itself (no firewall)
#       sym       a fresh random port per destination (masquerade fully-random): a symmetric NAT
#       noudp     as cone, and all UDP is dropped (strict company network)
# The RTT between hi and hj is 2*(di+dj).  Nothing leaves the namespaces: no route to the real network exists.
# Only what "up" made is removed: namespaces named PREFIX-*, and the recorded delaylink pids.
set -Eeuo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
P=nl RUN=$HERE/natlab.run GSO=-g DL=$HERE/delaylink
while getopts p:r:s option; do
  case $option in p) P=$OPTARG ;; r) RUN=$OPTARG ;; s) GSO="" ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
PUB=203.0.113
ns() { ip netns exec "$P-$1" "${@:2}"; }

mk() { ip netns add "$P-$1"; ip -n "$P-$1" link set lo up; }

gateway() { # gateway I MODE: the nftables rules of g<I>
  local masq="masquerade" dnat="" inp="iifname wan ct state new drop" fwd="iifname wan ct state new drop" udp=""
  case $2 in
    full)  dnat="iifname wan meta l4proto udp dnat to 10.$1.0.2"; fwd="iifname wan ct state new ct status dnat accept; iifname wan ct state new drop" ;;
    cone)  ;;
    leaky) inp="" ;;
    sym)   masq="masquerade fully-random" ;;
    noudp) udp="meta l4proto udp drop" ;;
  esac
  ns "g$1" nft -f - <<EOF
table ip lab {
  chain c_pre  { type nat hook prerouting priority dstnat; $dnat
  }
  chain c_post { type nat hook postrouting priority srcnat; oifname wan $masq
  }
  chain c_in   { type filter hook input priority filter; $inp
  }
  chain c_fwd  { type filter hook forward priority filter; $udp
    $fwd
  }
}
EOF
}

up() {
  local i=0 spec mode ms mbit wan n
  for spec in "$@"; do
    case ${spec%%:*} in open|full|cone|leaky|sym|noudp) ;; *) echo "unknown mode in $spec" >&2; exit 2 ;; esac
  done
  if ip netns list | grep -q "^$P-"; then echo "a lab named $P is up; run: $0 down" >&2; exit 2; fi
  trap down ERR
  if [ "$HERE/delaylink.c" -nt "$DL" ]; then cc -O2 -Wall -o "$DL.$$" "$HERE/delaylink.c" && mv "$DL.$$" "$DL"; fi
  mkdir -p "$RUN"; mk net; ns net sysctl -qw net.ipv4.ip_forward=1
  mk s; ip link add s netns "$P-net" type veth peer name eth0 netns "$P-s"
  ip -n "$P-net" addr add $PUB.254/32 dev s; ip -n "$P-net" link set s up; ip -n "$P-net" route add $PUB.100 dev s
  ip -n "$P-s" addr add $PUB.100/32 dev eth0; ip -n "$P-s" link set eth0 up
  ip -n "$P-s" route add $PUB.254 dev eth0; ip -n "$P-s" route add default via $PUB.254
  for spec in "$@"; do
    i=$((i + 1)); IFS=: read -r mode ms mbit <<<"$spec"
    mk "h$i"; wan=h$i
    if [ "$mode" != open ]; then
      wan=g$i; mk "$wan"; ns "$wan" sysctl -qw net.ipv4.ip_forward=1
      ip link add lan netns "$P-$wan" type veth peer name eth0 netns "$P-h$i"
      ip -n "$P-$wan" addr add 10.$i.0.1/24 dev lan; ip -n "$P-$wan" link set lan up
      ip -n "$P-h$i" addr add 10.$i.0.2/24 dev eth0; ip -n "$P-h$i" link set eth0 up
      ip -n "$P-h$i" route add default via 10.$i.0.1
    fi
    ip -n "$P-$wan" tuntap add wan mode tun; ip -n "$P-net" tuntap add "w$i" mode tun
    "$DL" $GSO -d "${ms:-25}" -r "${mbit:-0}" -c "$RUN/h$i.ctl" "$P-$wan:wan" "$P-net:w$i" </dev/null >/dev/null 2>"$RUN/h$i.log" & echo $! >"$RUN/h$i.pid"
    for _ in $(seq 50); do grep -q ^up "$RUN/h$i.log" 2>/dev/null && break; sleep 0.02; done
    ip -n "$P-$wan" addr add $PUB.$i/32 dev wan; ip -n "$P-$wan" route add default dev wan
    ip -n "$P-net" route add $PUB.$i dev "w$i"
    [ "$mode" = open ] || gateway "$i" "$mode"
  done
  for n in $(ip netns list | awk -v p="$P-" 'index($1,p)==1{print $1}'); do   # long fat pipes
    ip netns exec "$n" sysctl -qw net.ipv4.tcp_rmem="4096 131072 67108864" net.ipv4.tcp_wmem="4096 131072 67108864"
  done
  echo "up: $i hosts; server s = $PUB.100"
}

down() {
  local f pid n
  for f in "$RUN"/*.pid; do
    [ -e "$f" ] || continue; pid=$(cat "$f")
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = delaylink ]; then kill "$pid" || true; fi
    rm -f "$f" "${f%.pid}.ctl"
  done
  for n in $(ip netns list | awk -v p="$P-" 'index($1,p)==1{print $1}'); do
    ip netns pids "$n" | xargs -r kill -9 2>/dev/null || true   # whatever was started inside and not ended
    ip netns del "$n"
  done
}

cmd=${1:-}; shift || true
case $cmd in
  up) up "$@" ;;
  down) down ;;
  exec) h=$1; shift; exec ip netns exec "$P-$h" "$@" ;;
  link) h=$1; shift; echo "$*" >"$RUN/$h.ctl" ;;
  status) ip netns list | grep "^$P-" || true; tail -qn1 "$RUN"/*.log 2>/dev/null || true ;;
  *) sed -n '2,28p' "$0"; exit 2 ;;
esac
