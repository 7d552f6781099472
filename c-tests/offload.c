/* SPDX-License-Identifier: BSD-3-Clause */
/* What the port does to a frame besides copying it: VLAN tags. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/pair.h"

#include <inttypes.h>
#include <string.h>

#include <rte_ether.h>

#define TAG 0x6abc
#define TAG_BYTES 4
#define ADDRESS_BYTES (2 * RTE_ETHER_ADDR_LEN)

static struct pair pair;
static uint8_t plain[2048], tagged[2048 + TAG_BYTES];

/* `plain` of this length, and `tagged`: the same with a tag of the given protocol. */
static void
make_frames(uint32_t length, uint16_t protocol)
{
	const uint8_t tag[TAG_BYTES] = {(uint8_t)(protocol >> 8), (uint8_t)protocol, TAG >> 8,
					TAG & 0xff};

	frame_fill(plain, length, length);
	memcpy(tagged, plain, ADDRESS_BYTES);
	memcpy(tagged + ADDRESS_BYTES, tag, TAG_BYTES);
	memcpy(tagged + ADDRESS_BYTES + TAG_BYTES, plain + ADDRESS_BYTES, length - ADDRESS_BYTES);
}

static void
expect_bytes(const struct rte_mbuf *mbuf, const uint8_t *bytes, uint32_t length)
{
	uint8_t copy[sizeof(tagged)];
	const uint8_t *seen;

	if (!CHECK(mbuf->pkt_len == length, "%u bytes, expected %u", mbuf->pkt_len, length))
		return;
	seen = rte_pktmbuf_read(mbuf, 0, length, copy);
	CHECK(seen != NULL && memcmp(seen, bytes, length) == 0, "%u bytes differ", length);
}

static void
receive(uint32_t length, uint16_t protocol, bool stripped)
{
	struct rte_mbuf *mbuf;

	make_frames(length, protocol);
	mbuf = pair_pass(&pair, TO_HOST, 0,
			 bytes_mbuf(pair.frontend_pool, tagged, length + TAG_BYTES, 0));
	REQUIRE(mbuf != NULL, "lost");
	if (stripped) {
		expect_bytes(mbuf, plain, length);
		CHECK(mbuf->vlan_tci == TAG, "tag %#x", mbuf->vlan_tci);
		CHECK(mbuf->ol_flags == (RTE_MBUF_F_RX_VLAN | RTE_MBUF_F_RX_VLAN_STRIPPED),
		      "flags %#" PRIx64, mbuf->ol_flags);
	} else {
		expect_bytes(mbuf, tagged, length + TAG_BYTES);
		CHECK(mbuf->vlan_tci == 0 && mbuf->ol_flags == 0, "tag %#x, flags %#" PRIx64,
		      mbuf->vlan_tci, mbuf->ol_flags);
	}
	CHECK(mbuf->port == pair.backend, "port %u", mbuf->port);
	rte_pktmbuf_free(mbuf);
}

static void
strip(void)
{
	const struct pair_options options = {.rx_offloads = RTE_ETH_RX_OFFLOAD_VLAN_STRIP};
	struct rte_eth_stats stats;
	struct rte_mbuf *mbuf;

	REQUIRE(pair_open(&pair, &options), "no pair");
	receive(60, RTE_ETHER_TYPE_VLAN, true);
	receive(14, RTE_ETHER_TYPE_VLAN, true);
	receive(1500, RTE_ETHER_TYPE_VLAN, true);
	/* The basic counter sees the frame after, the extended one before the tag went. */
	rte_eth_stats_get(pair.backend, &stats);
	CHECK(stats.ibytes == 60 + 14 + 1500, "%" PRIu64 " bytes", stats.ibytes);
	CHECK(xstat(pair.backend, "rx_q0_good_bytes") == 60 + 14 + 1500 + 3 * TAG_BYTES,
	      "%" PRIu64 " bytes", xstat(pair.backend, "rx_q0_good_bytes"));
	receive(60, RTE_ETHER_TYPE_QINQ, false);
	/* Untagged frames pass as they are. */
	make_frames(60, RTE_ETHER_TYPE_VLAN);
	mbuf = pair_pass(&pair, TO_HOST, 0, bytes_mbuf(pair.frontend_pool, plain, 60, 0));
	REQUIRE(mbuf != NULL, "lost");
	expect_bytes(mbuf, plain, 60);
	rte_pktmbuf_free(mbuf);
	pair_close(&pair);
}

static void
strip_not_asked_for(void)
{
	REQUIRE(pair_open(&pair, &(struct pair_options){0}), "no pair");
	receive(60, RTE_ETHER_TYPE_VLAN, false);
	receive(1500, RTE_ETHER_TYPE_VLAN, false);
	pair_close(&pair);
}

static void
strip_leaves_a_cut_tag(void)
{
	const struct pair_options options = {.rx_offloads = RTE_ETH_RX_OFFLOAD_VLAN_STRIP};
	struct rte_mbuf *mbuf;

	if (beyond_stock())
		return;
	REQUIRE(pair_open(&pair, &options), "no pair");
	make_frames(60, RTE_ETHER_TYPE_VLAN);
	for (uint32_t length = 1; length < ADDRESS_BYTES + TAG_BYTES + 2; length++) {
		mbuf = pair_pass(&pair, TO_HOST, 0,
				 bytes_mbuf(pair.frontend_pool, tagged, length, 0));
		REQUIRE(mbuf != NULL, "lost %u bytes", length);
		expect_bytes(mbuf, tagged, length);
		CHECK(mbuf->ol_flags == 0, "flags %#" PRIx64, mbuf->ol_flags);
		rte_pktmbuf_free(mbuf);
	}
	pair_close(&pair);
}

static void
send_tagged(uint32_t length, uint16_t segment)
{
	struct rte_mbuf *mbuf;

	make_frames(length, RTE_ETHER_TYPE_VLAN);
	mbuf = bytes_mbuf(pair.backend_pool, plain, length, segment);
	REQUIRE(mbuf != NULL, "no mbuf");
	mbuf->ol_flags |= RTE_MBUF_F_TX_VLAN;
	mbuf->vlan_tci = TAG;
	mbuf = pair_pass(&pair, TO_GUEST, 0, mbuf);
	REQUIRE(mbuf != NULL, "lost %u bytes", length);
	expect_bytes(mbuf, tagged, length + TAG_BYTES);
	rte_pktmbuf_free(mbuf);
}

static void
insert(void)
{
	const struct pair_options options = {.tx_offloads = RTE_ETH_TX_OFFLOAD_VLAN_INSERT};
	struct rte_eth_stats stats;

	REQUIRE(pair_open(&pair, &options), "no pair");
	send_tagged(60, 0);
	send_tagged(1500, 0);
	send_tagged(1500, 100);
	rte_eth_stats_get(pair.backend, &stats);
	CHECK(stats.obytes == 60 + 1500 + 1500 + 3 * TAG_BYTES, "%" PRIu64 " bytes", stats.obytes);
	CHECK(xstat(pair.backend, "tx_q0_good_bytes") == stats.obytes, "%" PRIu64 " bytes",
	      xstat(pair.backend, "tx_q0_good_bytes"));
	pair_close(&pair);
}

/* A tag needs no room in the mbuf, since the frame is copied anyway. */
static void
insert_without_headroom(void)
{
	const struct pair_options options = {.tx_offloads = RTE_ETH_TX_OFFLOAD_VLAN_INSERT};
	struct rte_mbuf *mbufs[3], *arrived[3];
	uint16_t count = 0;

	if (beyond_stock())
		return;
	REQUIRE(pair_open(&pair, &options), "no pair");
	for (unsigned int i = 0; i < RTE_DIM(mbufs); i++) {
		mbufs[i] = frame_mbuf(pair.backend_pool, 100, i, 0);
		REQUIRE(mbufs[i] != NULL, "no mbuf");
	}
	rte_pktmbuf_prepend(mbufs[1], rte_pktmbuf_headroom(mbufs[1]));
	mbufs[1]->ol_flags |= RTE_MBUF_F_TX_VLAN;
	mbufs[1]->vlan_tci = TAG;
	CHECK(rte_eth_tx_burst(pair.backend, 0, mbufs, RTE_DIM(mbufs)) == RTE_DIM(mbufs),
	      "not all were taken");
	WAIT_FOR((count += rte_eth_rx_burst(pair.frontend, 0, arrived + count, 3 - count)) == 3,
		 2000);
	REQUIRE(count == 3, "%u arrived", count);
	CHECK(frame_matches(arrived[0], 100, 0) && frame_matches(arrived[2], 100, 2),
	      "the others did not arrive as sent");
	CHECK(arrived[1]->pkt_len == RTE_PKTMBUF_HEADROOM + 100 + TAG_BYTES, "%u bytes",
	      arrived[1]->pkt_len);
	rte_pktmbuf_free_bulk(arrived, count);
	CHECK(xstat_sum(pair.backend, "drop") == 0, "%" PRIu64 " drops",
	      xstat_sum(pair.backend, "drop"));
	pair_close(&pair);
}

/* A tag for an mbuf that others hold, too: theirs must stay as it is. */
static void
insert_into_a_shared_mbuf(void)
{
	const struct pair_options options = {.tx_offloads = RTE_ETH_TX_OFFLOAD_VLAN_INSERT};
	struct rte_mbuf *original, *clone, *arrived = NULL;

	REQUIRE(pair_open(&pair, &options), "no pair");
	original = frame_mbuf(pair.backend_pool, 100, 7, 0);
	REQUIRE(original != NULL, "no mbuf");
	clone = rte_pktmbuf_clone(original, pair.backend_pool);
	REQUIRE(clone != NULL, "no clone");
	clone->ol_flags |= RTE_MBUF_F_TX_VLAN;
	clone->vlan_tci = TAG;
	if (rte_eth_tx_burst(pair.backend, 0, &clone, 1) == 0 && !plugin_is_stock())
		CHECK(false, "the clone was not taken");
	CHECK(frame_matches(original, 100, 7), "the original has changed");
	rte_pktmbuf_free(original);
	if (rte_eth_rx_burst(pair.frontend, 0, &arrived, 1) == 1)
		rte_pktmbuf_free(arrived);
	pair_close(&pair);
}

int
main(void)
{
	eal_start("offload");
	after_each_case(vdev_detach_all);
	run_case("a VLAN tag is stripped where the port asks for it", strip, 10);
	run_case("a VLAN tag stays where the port does not ask", strip_not_asked_for, 10);
	run_case("frames too short for a tag stay as they are", strip_leaves_a_cut_tag, 10);
	run_case("a VLAN tag is inserted", insert, 10);
	run_case("a tag needs no headroom", insert_without_headroom, 10);
	run_case("a shared mbuf is not written", insert_into_a_shared_mbuf, 10);
	return eal_end();
}
