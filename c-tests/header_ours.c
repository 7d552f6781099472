/* SPDX-License-Identifier: BSD-3-Clause */
#include "../include/rte_eth_vhost.h"
/* Applications got at librte_vhost through this header, and still do where it is installed. */
#include "header_takes_vhost.h"

#define FACTS_NAME facts_of_ours
#include "header_facts.h"
