/* SPDX-License-Identifier: BSD-3-Clause */
/* Checksums and large frames that one side leaves to the other, both ways. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/pair.h"

#include <inttypes.h>
#include <string.h>

#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_mbuf_ptype.h>
#include <rte_tcp.h>

#define HEADERS (RTE_ETHER_HDR_LEN + sizeof(struct rte_ipv4_hdr) + sizeof(struct rte_tcp_hdr))
#define L4_AT (RTE_ETHER_HDR_LEN + sizeof(struct rte_ipv4_hdr))
#define SEGMENT 1448
#define LARGE 8000

#define RX_CHECKSUMS (RTE_ETH_RX_OFFLOAD_UDP_CKSUM | RTE_ETH_RX_OFFLOAD_TCP_CKSUM)
#define TX_CHECKSUMS (RTE_ETH_TX_OFFLOAD_UDP_CKSUM | RTE_ETH_TX_OFFLOAD_TCP_CKSUM)

static struct pair pair;

/* TCP over IPv4 with the IP checksum in place and the TCP checksum asked for. */
static struct rte_mbuf *
tcp_mbuf(struct rte_mempool *pool, uint32_t payload, uint16_t segment_size)
{
	static uint8_t bytes[HEADERS + LARGE];
	struct rte_ether_hdr *ether = (struct rte_ether_hdr *)bytes;
	struct rte_ipv4_hdr *ip = (struct rte_ipv4_hdr *)(bytes + RTE_ETHER_HDR_LEN);
	struct rte_tcp_hdr *tcp = (struct rte_tcp_hdr *)(bytes + L4_AT);
	struct rte_mbuf *mbuf;

	frame_fill(bytes, HEADERS + payload, payload);
	ether->ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4);
	memset(ip, 0, sizeof(*ip) + sizeof(*tcp));
	ip->version_ihl = RTE_IPV4_VHL_DEF;
	ip->total_length = rte_cpu_to_be_16(HEADERS - RTE_ETHER_HDR_LEN + payload);
	ip->time_to_live = 64;
	ip->next_proto_id = IPPROTO_TCP;
	ip->src_addr = RTE_BE32(RTE_IPV4(10, 0, 0, 1));
	ip->dst_addr = RTE_BE32(RTE_IPV4(10, 0, 0, 2));
	ip->hdr_checksum = rte_ipv4_cksum(ip);
	tcp->data_off = sizeof(*tcp) / 4 << 4;
	tcp->cksum = rte_ipv4_phdr_cksum(ip, 0);

	mbuf = bytes_mbuf(pool, bytes, HEADERS + payload, 0);
	if (mbuf == NULL)
		return NULL;
	mbuf->ol_flags |= RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_TCP_CKSUM;
	if (segment_size != 0)
		mbuf->ol_flags |= RTE_MBUF_F_TX_TCP_SEG | RTE_MBUF_F_TX_IP_CKSUM;
	mbuf->l2_len = RTE_ETHER_HDR_LEN;
	mbuf->l3_len = sizeof(*ip);
	mbuf->l4_len = sizeof(*tcp);
	mbuf->tso_segsz = segment_size;
	return mbuf;
}

static bool
checksum_is_right(const struct rte_mbuf *mbuf)
{
	const struct rte_ipv4_hdr *ip =
		rte_pktmbuf_mtod_offset(mbuf, const struct rte_ipv4_hdr *, RTE_ETHER_HDR_LEN);

	return rte_ipv4_udptcp_cksum_mbuf_verify(mbuf, ip, L4_AT) == 0;
}

static void
expect(const struct rte_mbuf *mbuf, uint64_t flags, uint32_t payload, uint16_t segment_size)
{
	const uint64_t mask = RTE_MBUF_F_RX_L4_CKSUM_MASK | RTE_MBUF_F_RX_LRO;

	CHECK(mbuf->pkt_len == HEADERS + payload, "%u bytes", mbuf->pkt_len);
	CHECK((mbuf->ol_flags & mask) == flags, "flags %#" PRIx64, mbuf->ol_flags);
	if (flags & RTE_MBUF_F_RX_LRO)
		CHECK(mbuf->tso_segsz == segment_size, "segments of %u", mbuf->tso_segsz);
}

static void
to_host(const struct pair_options *options, uint32_t payload, uint16_t segment_size, uint64_t flags)
{
	const uint32_t type = RTE_PTYPE_L2_ETHER | RTE_PTYPE_L3_IPV4 | RTE_PTYPE_L4_TCP;
	bool made_here = (flags & RTE_MBUF_F_RX_L4_CKSUM_MASK) == RTE_MBUF_F_RX_L4_CKSUM_GOOD;
	struct rte_mbuf *mbuf;

	REQUIRE(pair_open(&pair, options), "no pair");
	mbuf = tcp_mbuf(pair.frontend_pool, payload, segment_size);
	REQUIRE(mbuf != NULL, "no mbuf");
	mbuf = pair_pass(&pair, TO_HOST, 0, mbuf);
	REQUIRE(mbuf != NULL, "lost");
	expect(mbuf, flags, payload, segment_size);
	CHECK(mbuf->packet_type == type, "type %#x", mbuf->packet_type);
	CHECK(checksum_is_right(mbuf) == made_here, "the checksum is %sright",
	      made_here ? "not " : "");
	rte_pktmbuf_free(mbuf);
	pair_close(&pair);
}

static void
a_port_that_hears_of_it_gets_a_mark(void)
{
	to_host(&(struct pair_options){.rx_offloads = RX_CHECKSUMS,
				       .frontend_tx_offloads = TX_CHECKSUMS},
		500, 0, RTE_MBUF_F_RX_L4_CKSUM_NONE);
}

static void
a_port_that_does_not_gets_the_checksum(void)
{
	const struct pair_options options = {.frontend_tx_offloads = TX_CHECKSUMS};

	to_host(&options, 500, 0, RTE_MBUF_F_RX_L4_CKSUM_GOOD);
	to_host(&options, 7, 0, RTE_MBUF_F_RX_L4_CKSUM_GOOD);
}

static void
a_large_frame_is_marked(void)
{
	struct pair_options options = {
		.devargs = ",tso=1",
		.rx_offloads = RX_CHECKSUMS,
		.frontend_tx_offloads = TX_CHECKSUMS | RTE_ETH_TX_OFFLOAD_TCP_TSO,
	};

	to_host(&options, LARGE, SEGMENT, RTE_MBUF_F_RX_L4_CKSUM_NONE | RTE_MBUF_F_RX_LRO);
	options.rx_offloads = 0;
	to_host(&options, LARGE, SEGMENT, RTE_MBUF_F_RX_L4_CKSUM_GOOD | RTE_MBUF_F_RX_LRO);
}

static void
old_flags(void)
{
	const struct pair_options options = {
		.devargs = ",tso=1,legacy-ol-flags=1",
		.frontend_tx_offloads = TX_CHECKSUMS | RTE_ETH_TX_OFFLOAD_TCP_TSO,
	};
	struct rte_mbuf *mbuf;

	REQUIRE(pair_open(&pair, &options), "no pair");
	mbuf = pair_pass(&pair, TO_HOST, 0, tcp_mbuf(pair.frontend_pool, LARGE, SEGMENT));
	REQUIRE(mbuf != NULL, "lost");
	expect(mbuf, 0, LARGE, 0);
	CHECK((mbuf->ol_flags & RTE_MBUF_F_TX_TCP_SEG) != 0 &&
		      (mbuf->ol_flags & RTE_MBUF_F_TX_IPV4) != 0,
	      "flags %#" PRIx64, mbuf->ol_flags);
	CHECK(mbuf->l2_len == RTE_ETHER_HDR_LEN && mbuf->l3_len == sizeof(struct rte_ipv4_hdr) &&
		      mbuf->l4_len == sizeof(struct rte_tcp_hdr) && mbuf->tso_segsz == SEGMENT,
	      "lengths %u %u %u, segments of %u", mbuf->l2_len, mbuf->l3_len, mbuf->l4_len,
	      mbuf->tso_segsz);
	rte_pktmbuf_free(mbuf);
	pair_close(&pair);
}

static void
a_guest_that_takes_it_gets_a_header(void)
{
	const struct pair_options options = {
		.frontend_rx_offloads = RX_CHECKSUMS | RTE_ETH_RX_OFFLOAD_TCP_LRO,
	};
	struct rte_mbuf *mbuf;

	REQUIRE(pair_open(&pair, &options), "no pair");
	mbuf = pair_pass(&pair, TO_GUEST, 0, tcp_mbuf(pair.backend_pool, 500, 0));
	REQUIRE(mbuf != NULL, "lost");
	expect(mbuf, RTE_MBUF_F_RX_L4_CKSUM_NONE, 500, 0);
	rte_pktmbuf_free(mbuf);
	mbuf = pair_pass(&pair, TO_GUEST, 0, tcp_mbuf(pair.backend_pool, LARGE, SEGMENT));
	REQUIRE(mbuf != NULL, "lost");
	expect(mbuf, RTE_MBUF_F_RX_L4_CKSUM_NONE | RTE_MBUF_F_RX_LRO, LARGE, SEGMENT);
	rte_pktmbuf_free(mbuf);
	pair_close(&pair);
}

static void
a_guest_that_does_not_gets_the_checksum(void)
{
	const struct pair_options options = {.tx_offloads = TX_CHECKSUMS};
	struct rte_mbuf *mbuf;

	REQUIRE(pair_open(&pair, &options), "no pair");
	mbuf = pair_pass(&pair, TO_GUEST, 0, tcp_mbuf(pair.backend_pool, 501, 0));
	REQUIRE(mbuf != NULL, "lost");
	expect(mbuf, 0, 501, 0);
	CHECK(checksum_is_right(mbuf), "the checksum is not right");
	rte_pktmbuf_free(mbuf);
	pair_close(&pair);
}

static void
a_large_frame_for_a_guest_that_takes_none(void)
{
	const struct pair_options options = {.frontend_rx_offloads = RX_CHECKSUMS};
	struct rte_mbuf *mbuf;

	if (beyond_stock())
		return;
	REQUIRE(pair_open(&pair, &options), "no pair");
	mbuf = tcp_mbuf(pair.backend_pool, LARGE, SEGMENT);
	REQUIRE(mbuf != NULL, "no mbuf");
	CHECK(rte_eth_tx_burst(pair.backend, 0, &mbuf, 1) == 1, "not taken");
	CHECK(xstat(pair.backend, "tx_q0_drop_gso") == 1, "not counted");
	/* The next one is not held up. */
	mbuf = pair_pass(&pair, TO_GUEST, 0, tcp_mbuf(pair.backend_pool, 100, 0));
	REQUIRE(mbuf != NULL, "lost");
	rte_pktmbuf_free(mbuf);
	pair_close(&pair);
}

/* What the port marked, it knows again: an application that only forwards need not look. */
static void
marks_survive_forwarding(void)
{
	struct pair_options options = {
		.devargs = ",tso=1",
		.frontend_tx_offloads = TX_CHECKSUMS | RTE_ETH_TX_OFFLOAD_TCP_TSO,
		.frontend_rx_offloads = RX_CHECKSUMS | RTE_ETH_RX_OFFLOAD_TCP_LRO,
	};
	struct rte_mbuf *mbuf;

	if (beyond_stock())
		return;
	for (int marks = 0; marks < 2; marks++) {
		options.rx_offloads = marks ? RX_CHECKSUMS : 0;
		REQUIRE(pair_open(&pair, &options), "no pair");
		mbuf = pair_pass(&pair, TO_HOST, 0, tcp_mbuf(pair.frontend_pool, LARGE, SEGMENT));
		REQUIRE(mbuf != NULL, "lost");
		mbuf = pair_pass(&pair, TO_GUEST, 0, mbuf);
		REQUIRE(mbuf != NULL, "lost on the way back");
		expect(mbuf, RTE_MBUF_F_RX_L4_CKSUM_NONE | RTE_MBUF_F_RX_LRO, LARGE, SEGMENT);
		rte_pktmbuf_free(mbuf);
		mbuf = pair_pass(&pair, TO_HOST, 0, tcp_mbuf(pair.frontend_pool, 300, 0));
		REQUIRE(mbuf != NULL, "lost");
		mbuf = pair_pass(&pair, TO_GUEST, 0, mbuf);
		REQUIRE(mbuf != NULL, "lost on the way back");
		CHECK(marks || checksum_is_right(mbuf), "the checksum is not right");
		expect(mbuf, marks ? RTE_MBUF_F_RX_L4_CKSUM_NONE : 0, 300, 0);
		rte_pktmbuf_free(mbuf);
		pair_close(&pair);
	}
}

/* The bytes of an mbuf that others hold are not written, and the checksum is made all the same. */
static void
a_shared_mbuf_stays_as_it_is(void)
{
	struct rte_mbuf *original, *clone, *mbuf;
	const struct rte_tcp_hdr *tcp;
	rte_be16_t before;

	if (beyond_stock())
		return;
	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	original = tcp_mbuf(pair.backend_pool, 400, 0);
	REQUIRE(original != NULL, "no mbuf");
	tcp = rte_pktmbuf_mtod_offset(original, const struct rte_tcp_hdr *, L4_AT);
	before = tcp->cksum;
	clone = rte_pktmbuf_clone(original, pair.backend_pool);
	REQUIRE(clone != NULL, "no clone");
	mbuf = pair_pass(&pair, TO_GUEST, 0, clone);
	REQUIRE(mbuf != NULL, "lost");
	CHECK(checksum_is_right(mbuf), "the checksum is not right");
	CHECK(tcp->cksum == before, "the original has changed");
	rte_pktmbuf_free(mbuf);
	rte_pktmbuf_free(original);
	pair_close(&pair);
}

static void
the_ip_checksum_is_checked_on_request(void)
{
	const struct pair_options options = {.rx_offloads = RTE_ETH_RX_OFFLOAD_IPV4_CKSUM};
	struct rte_mbuf *mbuf;

	if (beyond_stock())
		return;
	REQUIRE(pair_open(&pair, &options), "no pair");
	for (int spoilt = 0; spoilt < 2; spoilt++) {
		mbuf = tcp_mbuf(pair.frontend_pool, 100, 0);
		REQUIRE(mbuf != NULL, "no mbuf");
		mbuf->ol_flags = 0;
		rte_pktmbuf_mtod(mbuf, uint8_t *)[RTE_ETHER_HDR_LEN + 8] -= spoilt;
		mbuf = pair_pass(&pair, TO_HOST, 0, mbuf);
		REQUIRE(mbuf != NULL, "lost");
		CHECK((mbuf->ol_flags & RTE_MBUF_F_RX_IP_CKSUM_MASK) ==
			      (spoilt ? RTE_MBUF_F_RX_IP_CKSUM_BAD : RTE_MBUF_F_RX_IP_CKSUM_GOOD),
		      "flags %#" PRIx64, mbuf->ol_flags);
		rte_pktmbuf_free(mbuf);
	}
	pair_close(&pair);
}

int
main(void)
{
	eal_start("checksum");
	after_each_case(vdev_detach_all);
	run_case("a missing checksum is marked for a port that wants marks",
		 a_port_that_hears_of_it_gets_a_mark, 10);
	run_case("a missing checksum is made for any other port",
		 a_port_that_does_not_gets_the_checksum, 10);
	run_case("a large frame is marked", a_large_frame_is_marked, 10);
	run_case("legacy-ol-flags=1 marks by what a sender would ask", old_flags, 10);
	run_case("a guest that takes them gets checksums and large frames as they are",
		 a_guest_that_takes_it_gets_a_header, 10);
	run_case("a guest that does not gets the checksum made",
		 a_guest_that_does_not_gets_the_checksum, 10);
	run_case("a large frame for a guest that takes none is dropped and counted",
		 a_large_frame_for_a_guest_that_takes_none, 10);
	run_case("marks survive an application that only forwards", marks_survive_forwarding, 15);
	run_case("a shared mbuf is sent with its checksum and not written",
		 a_shared_mbuf_stays_as_it_is, 10);
	run_case("the IPv4 checksum is checked where the port asks for it",
		 the_ip_checksum_is_checked_on_request, 10);
	return eal_end();
}
