/* SPDX-License-Identifier: BSD-3-Clause */
/* Large frames of UDP: one datagram to be cut into fragments (UFO), or many of them (USO). */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/guest.h"

#include <inttypes.h>
#include <netinet/in.h>
#include <string.h>

#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_mbuf_dyn.h>
#include <rte_udp.h>

#define F_CSUM (1ull << 0)
#define F_GUEST_CSUM (1ull << 1)
#define F_GUEST_UFO (1ull << 10)
#define F_HOST_UFO (1ull << 14)
#define F_GUEST_USO4 (1ull << 54)
#define F_GUEST_USO6 (1ull << 55)
#define F_HOST_USO (1ull << 56)
#define USO (F_GUEST_USO4 | F_GUEST_USO6 | F_HOST_USO)

/* In a virtio-net header. */
#define NEEDS_CSUM 1
#define GSO_UDP 3
#define GSO_UDP_L4 5

#define PAYLOAD 5000
#define SEGMENT 1000
#define FRAME(ip_length) (RTE_ETHER_HDR_LEN + (ip_length) + 8 + PAYLOAD)
#define IPV4 sizeof(struct rte_ipv4_hdr)
#define IPV6 sizeof(struct rte_ipv6_hdr)

struct net_header {
	uint8_t flags, gso_type;
	uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};

static struct guest guest;
static uint8_t frame[FRAME(IPV6)];

/* The flag by which an application tells datagrams from fragments; 0 when there is none. */
static uint64_t
datagrams_flag(void)
{
	int bit = rte_mbuf_dynflag_lookup("net_vhost_uso", NULL);

	return bit < 0 ? 0 : 1ull << bit;
}

/* UDP over an IP header of this length, with the sum of the pseudo-header in the checksum's field. */
static void
make_frame(uint32_t ip_length)
{
	const bool v4 = ip_length == IPV4;
	struct rte_udp_hdr *udp = (struct rte_udp_hdr *)(frame + RTE_ETHER_HDR_LEN + ip_length);

	frame_fill(frame, FRAME(ip_length), 1);
	memset(frame + RTE_ETHER_HDR_LEN, 0, ip_length + sizeof(*udp));
	((struct rte_ether_hdr *)frame)->ether_type =
		rte_cpu_to_be_16(v4 ? RTE_ETHER_TYPE_IPV4 : RTE_ETHER_TYPE_IPV6);
	udp->dgram_len = rte_cpu_to_be_16(sizeof(*udp) + PAYLOAD);
	if (v4) {
		struct rte_ipv4_hdr *ip = (struct rte_ipv4_hdr *)(frame + RTE_ETHER_HDR_LEN);

		ip->version_ihl = RTE_IPV4_VHL_DEF;
		ip->total_length = rte_cpu_to_be_16(IPV4 + sizeof(*udp) + PAYLOAD);
		ip->time_to_live = 64;
		ip->next_proto_id = IPPROTO_UDP;
		ip->src_addr = RTE_BE32(RTE_IPV4(10, 0, 0, 1));
		ip->dst_addr = RTE_BE32(RTE_IPV4(10, 0, 0, 2));
		ip->hdr_checksum = rte_ipv4_cksum(ip);
		udp->dgram_cksum = rte_ipv4_phdr_cksum(ip, 0);
	} else {
		struct rte_ipv6_hdr *ip = (struct rte_ipv6_hdr *)(frame + RTE_ETHER_HDR_LEN);

		ip->vtc_flow = RTE_BE32(6u << 28);
		ip->payload_len = udp->dgram_len;
		ip->proto = IPPROTO_UDP;
		ip->hop_limits = 64;
		udp->dgram_cksum = rte_ipv6_phdr_cksum(ip, 0);
	}
}

static bool
open_guest(const char *devargs, uint64_t features)
{
	const struct guest_options options = {
		.features = USUAL_FEATURES | F_CSUM | F_GUEST_CSUM | features,
		.devargs = devargs,
	};

	return guest_open(&guest, &options);
}

/* The guest sends the frame with this kind of large frame in its header; what the host sees. */
static struct rte_mbuf *
host_receives(uint8_t gso_type, uint32_t ip_length)
{
	const struct net_header header = {
		.flags = NEEDS_CSUM,
		.gso_type = gso_type,
		.hdr_len = (uint16_t)(RTE_ETHER_HDR_LEN + ip_length + 8),
		.gso_size = SEGMENT,
		.csum_start = (uint16_t)(RTE_ETHER_HDR_LEN + ip_length),
		.csum_offset = 6,
	};
	struct used_entry entry;
	struct rte_mbuf *mbuf;

	make_frame(ip_length);
	guest_write(&guest.frontend, DATA_GPA, &header, sizeof(header));
	guest_write(&guest.frontend, DATA_GPA + HEADER, frame, FRAME(ip_length));
	ring_describe(guest.to_host, 0, DATA_GPA, HEADER + FRAME(ip_length), 0, 0);
	ring_offer(guest.to_host, 0);
	mbuf = receive_one(guest.port, 0, 2000);
	if (!CHECK(mbuf != NULL, "lost"))
		return NULL;
	CHECK(guest_take_used(guest.to_host, &entry, 1) == 1, "not given back");
	CHECK(mbuf->pkt_len == FRAME(ip_length), "%u bytes", mbuf->pkt_len);
	return mbuf;
}

/* The host sends an mbuf; what its header says to the guest, -1 when it was dropped and counted. */
static int
guest_receives(struct rte_mbuf *mbuf, uint32_t ip_length)
{
	const uint64_t dropped = xstat(guest.port, "tx_q0_drop_gso");
	struct net_header header;
	struct used_entry entry;

	ring_describe(guest.to_guest, 0, DATA_GPA + 0x10000, 0x8000, DESC_WRITE, 0);
	ring_offer(guest.to_guest, 0);
	if (!CHECK(rte_eth_tx_burst(guest.port, 0, &mbuf, 1) == 1, "not taken"))
		return -2;
	if (xstat(guest.port, "tx_q0_drop_gso") == dropped + 1)
		return -1;
	if (!CHECK(guest_take_used(guest.to_guest, &entry, 1) == 1, "not given back"))
		return -2;
	CHECK(entry.length == HEADER + FRAME(ip_length), "%u bytes", entry.length);
	guest_read(&guest.frontend, DATA_GPA + 0x10000, &header, sizeof(header));
	CHECK(header.flags == NEEDS_CSUM && header.csum_offset == 6 &&
		      header.csum_start == RTE_ETHER_HDR_LEN + ip_length &&
		      header.hdr_len == header.csum_start + 8 && header.gso_size == SEGMENT,
	      "flags %#x, start %u, offset %u, headers %u, segments of %u", header.flags,
	      header.csum_start, header.csum_offset, header.hdr_len, header.gso_size);
	return header.gso_type;
}

static struct rte_mbuf *
request(uint32_t ip_length, uint64_t flags)
{
	struct rte_mbuf *mbuf;

	make_frame(ip_length);
	mbuf = bytes_mbuf(guest.pool, frame, FRAME(ip_length), 0);
	if (!CHECK(mbuf != NULL, "no mbuf"))
		return NULL;
	mbuf->ol_flags |= RTE_MBUF_F_TX_UDP_SEG | flags |
			  (ip_length == IPV4 ? RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_IP_CKSUM
					     : RTE_MBUF_F_TX_IPV6);
	mbuf->l2_len = RTE_ETHER_HDR_LEN;
	mbuf->l3_len = ip_length & 0x1ff;
	mbuf->l4_len = 8;
	mbuf->tso_segsz = SEGMENT;
	return mbuf;
}

static uint64_t
offered(const char *devargs)
{
	uint64_t features = 0;

	if (!CHECK(guest_open_port(&guest, &(struct guest_options){.devargs = devargs}), "no port"))
		return 0;
	CHECK(frontend_connect(&guest.frontend, guest.path) &&
		      frontend_get_u64(&guest.frontend, GET_FEATURES, &features),
	      "no answer");
	guest_close(&guest);
	return features;
}

static void
offer(void)
{
	struct rte_eth_dev_info info;

	if (beyond_stock())
		return;
	CHECK((offered("") & USO) == 0, "offered by default");
	CHECK((offered(",tso=1") & USO) == USO, "not offered with tso=1");
	CHECK((offered(",tso=1,linear-buffer=1") & USO) == 0, "offered to a port of small buffers");
	CHECK((offered(",tso=1,linear-buffer=1,ext-buffer=1") & USO) == USO, "not offered");
	REQUIRE(open_guest(",tso=1", 0), "no guest");
	CHECK(rte_eth_dev_info_get(guest.port, &info) == 0 &&
		      (info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_UDP_TSO) != 0,
	      "the port does not tell");
	guest_close(&guest);
}

static void
marks(void)
{
	const uint64_t mask = RTE_MBUF_F_RX_L4_CKSUM_MASK | RTE_MBUF_F_RX_LRO;
	const uint32_t ip_lengths[] = {IPV4, IPV6};
	const uint8_t kinds[] = {GSO_UDP, GSO_UDP_L4};
	const struct rte_eth_conf conf = {
		.rxmode.offloads = RTE_ETH_RX_OFFLOAD_UDP_CKSUM,
	};

	if (beyond_stock())
		return;
	REQUIRE(open_guest(",tso=1", USO | F_HOST_UFO | F_GUEST_UFO), "no guest");
	/* A port that hears of missing checksums. */
	CHECK(rte_eth_dev_stop(guest.port) == 0 &&
		      rte_eth_dev_configure(guest.port, 1, 1, &conf) == 0 &&
		      rte_eth_rx_queue_setup(guest.port, 0, 256, 0, NULL, guest.pool) == 0 &&
		      rte_eth_tx_queue_setup(guest.port, 0, 256, 0, NULL) == 0 &&
		      rte_eth_dev_start(guest.port) == 0,
	      "not configured again");
	for (unsigned int i = 0; i < 4; i++) {
		const uint32_t ip_length = ip_lengths[i & 1];
		const uint8_t kind = kinds[i >> 1];
		struct rte_mbuf *mbuf = host_receives(kind, ip_length);
		int seen;

		REQUIRE(mbuf != NULL, "nothing came");
		CHECK((mbuf->ol_flags & mask) == (RTE_MBUF_F_RX_L4_CKSUM_NONE | RTE_MBUF_F_RX_LRO) &&
			      mbuf->tso_segsz == SEGMENT,
		      "flags %#" PRIx64 ", segments of %u", mbuf->ol_flags, mbuf->tso_segsz);
		CHECK((mbuf->packet_type & RTE_PTYPE_L4_MASK) == RTE_PTYPE_L4_UDP, "type %#x",
		      mbuf->packet_type);
		CHECK(datagrams_flag() != 0 &&
			      ((mbuf->ol_flags & datagrams_flag()) != 0) == (kind == GSO_UDP_L4),
		      "flags %#" PRIx64 ", kind %u", mbuf->ol_flags, kind);
		/* What only passes through stays what it was. */
		seen = guest_receives(mbuf, ip_length);
		CHECK(seen == kind, "kind %u became %d", kind, seen);
	}
	guest_close(&guest);
}

static void
old_flags(void)
{
	const uint8_t kinds[] = {GSO_UDP, GSO_UDP_L4};

	if (beyond_stock())
		return;
	REQUIRE(open_guest(",tso=1,legacy-ol-flags=1", USO | F_HOST_UFO | F_GUEST_UFO), "no guest");
	for (unsigned int i = 0; i < RTE_DIM(kinds); i++) {
		struct rte_mbuf *mbuf = host_receives(kinds[i], IPV4);
		const uint64_t flags = RTE_MBUF_F_TX_UDP_SEG | RTE_MBUF_F_TX_IPV4;
		int seen;

		REQUIRE(mbuf != NULL, "nothing came");
		CHECK((mbuf->ol_flags & flags) == flags, "flags %#" PRIx64, mbuf->ol_flags);
		CHECK(mbuf->l2_len == RTE_ETHER_HDR_LEN && mbuf->l3_len == IPV4 &&
			      mbuf->l4_len == 8 && mbuf->tso_segsz == SEGMENT,
		      "lengths %u %u %u, segments of %u", mbuf->l2_len, mbuf->l3_len, mbuf->l4_len,
		      mbuf->tso_segsz);
		seen = guest_receives(mbuf, IPV4);
		CHECK(seen == kinds[i], "kind %u became %d", kinds[i], seen);
	}
	guest_close(&guest);
}

static void
requests(void)
{
	const struct {
		uint64_t features;
		uint32_t ip_length;
		bool datagrams;
		int expected;
	} cases[] = {
		{0, IPV4, false, -1},
		{0, IPV4, true, -1},
		{F_GUEST_UFO, IPV4, false, GSO_UDP},
		{F_GUEST_UFO, IPV4, true, -1},
		{F_GUEST_USO4, IPV4, false, GSO_UDP_L4},
		{F_GUEST_USO4, IPV4, true, GSO_UDP_L4},
		{F_GUEST_USO4, IPV6, true, -1},
		{F_GUEST_USO6, IPV6, true, GSO_UDP_L4},
		{F_GUEST_USO6, IPV4, true, -1},
		{F_GUEST_UFO | F_GUEST_USO4, IPV4, false, GSO_UDP},
		{F_GUEST_UFO | F_GUEST_USO4, IPV4, true, GSO_UDP_L4},
	};

	if (beyond_stock())
		return;
	for (unsigned int i = 0; i < RTE_DIM(cases); i++) {
		struct rte_mbuf *mbuf;
		int seen;

		REQUIRE(open_guest(",tso=1", cases[i].features), "no guest");
		mbuf = request(cases[i].ip_length, cases[i].datagrams ? datagrams_flag() : 0);
		REQUIRE(mbuf != NULL, "no mbuf");
		seen = guest_receives(mbuf, cases[i].ip_length);
		CHECK(seen == cases[i].expected, "case %u: %d", i, seen);
		guest_close(&guest);
	}
}

int
main(void)
{
	eal_start("datagrams");
	after_each_case(vdev_detach_all);
	run_case("USO is offered with tso=1 alone", offer, 10);
	run_case("one datagram and many are told apart, and stay so", marks, 10);
	run_case("legacy-ol-flags=1 tells them apart, too", old_flags, 10);
	run_case("a guest gets what it takes, and nothing else", requests, 20);
	return eal_end();
}
