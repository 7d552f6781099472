/* SPDX-License-Identifier: BSD-3-Clause */
#include <rte_eth_vhost.h>
#include "header_takes_vhost.h"

#define FACTS_NAME facts_of_dpdk
#include "header_facts.h"
