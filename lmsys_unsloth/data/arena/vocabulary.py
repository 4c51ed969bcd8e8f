"""Words and facts from which the simulated arena makes its questions. Written for this project."""

from __future__ import annotations

NAMES = (
    "Ada", "Ben", "Cleo", "Dov", "Elif", "Femi", "Gus", "Hana", "Ines", "Joao", "Kofi", "Lena", "Mira",
    "Nils", "Oona", "Pavel", "Quinn", "Rosa", "Sami", "Tove", "Uma", "Viktor", "Wen", "Ximena", "Yara",
    "Zeno", "Arlo", "Bea", "Cyrus", "Dunja", "Emeka", "Freya", "Goran", "Hugo", "Ilse", "Jun", "Kaia",
    "Luca", "Maud", "Noor",
)  # fmt: skip

THINGS = (
    "apples", "marbles", "stamps", "pencils", "buttons", "postcards", "plums", "lemons", "tickets",
    "shells", "bricks", "candles", "coins", "cups", "eggs", "flowers", "books", "hats", "keys", "lamps",
    "magnets", "nuts", "onions", "parcels", "radishes", "ropes", "spoons", "towels", "tulips",
    "carrots", "walnuts", "badges", "bottles", "crayons", "envelopes", "figs", "kites", "mugs", "pears",
    "scarves",
)  # fmt: skip

CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi", "Norway": "Oslo",
    "Egypt": "Cairo", "Canada": "Ottawa", "Greece": "Athens", "Portugal": "Lisbon", "Poland": "Warsaw",
    "Austria": "Vienna", "Hungary": "Budapest", "Finland": "Helsinki", "Sweden": "Stockholm",
    "Denmark": "Copenhagen", "Ireland": "Dublin", "Iceland": "Reykjavik", "Spain": "Madrid", "Italy": "Rome",
    "Germany": "Berlin", "Belgium": "Brussels", "Cuba": "Havana", "Chile": "Santiago", "Ecuador": "Quito",
    "Colombia": "Bogota", "Uruguay": "Montevideo", "Paraguay": "Asuncion", "Venezuela": "Caracas",
    "Mongolia": "Ulaanbaatar", "Nepal": "Kathmandu", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Indonesia": "Jakarta", "Philippines": "Manila", "Australia": "Canberra", "Turkey": "Ankara",
    "Iran": "Tehran", "Iraq": "Baghdad", "Jordan": "Amman", "Lebanon": "Beirut", "Morocco": "Rabat",
    "Ghana": "Accra", "Senegal": "Dakar", "Ethiopia": "Addis Ababa", "Uganda": "Kampala", "Zambia": "Lusaka",
    "Angola": "Luanda", "Ukraine": "Kyiv", "Romania": "Bucharest", "Bulgaria": "Sofia", "Serbia": "Belgrade",
    "Croatia": "Zagreb", "Slovenia": "Ljubljana", "Estonia": "Tallinn", "Latvia": "Riga",
    "Lithuania": "Vilnius", "Georgia": "Tbilisi", "Armenia": "Yerevan", "Jamaica": "Kingston",
    "Qatar": "Doha",
}  # fmt: skip

SYMBOLS = {
    "gold": "Au", "silver": "Ag", "iron": "Fe", "copper": "Cu", "tin": "Sn", "lead": "Pb", "sodium": "Na",
    "potassium": "K", "helium": "He", "neon": "Ne", "carbon": "C", "oxygen": "O", "hydrogen": "H",
    "nitrogen": "N", "calcium": "Ca", "zinc": "Zn", "nickel": "Ni", "mercury": "Hg", "tungsten": "W",
    "chlorine": "Cl", "silicon": "Si", "sulphur": "S", "uranium": "U", "argon": "Ar", "lithium": "Li",
    "magnesium": "Mg", "titanium": "Ti", "platinum": "Pt", "iodine": "I", "boron": "B",
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "early": "late", "heavy": "light", "wet": "dry", "loud": "quiet", "narrow": "wide",
    "rough": "smooth", "sharp": "blunt", "deep": "shallow", "empty": "full", "ancient": "modern",
    "brave": "timid", "cheap": "expensive", "clean": "dirty", "generous": "stingy", "humble": "proud",
    "lazy": "diligent", "polite": "rude", "rare": "common", "rigid": "flexible", "slow": "fast",
    "strong": "weak", "tall": "short", "thick": "thin", "transparent": "opaque", "urban": "rural",
    "victory": "defeat", "increase": "decrease", "arrive": "depart", "remember": "forget",
    "build": "demolish", "borrow": "lend", "accept": "refuse", "attack": "defend", "expand": "shrink",
    "float": "sink", "freeze": "melt", "gather": "scatter", "praise": "blame", "whisper": "shout",
}  # fmt: skip

PLURALS = {
    "mouse": "mice", "child": "children", "tooth": "teeth", "goose": "geese", "leaf": "leaves",
    "knife": "knives", "wolf": "wolves", "potato": "potatoes", "city": "cities", "fox": "foxes",
    "ox": "oxen", "person": "people", "crisis": "crises", "cactus": "cacti", "thief": "thieves",
    "shelf": "shelves", "berry": "berries", "hero": "heroes", "foot": "feet", "woman": "women",
    "half": "halves", "loaf": "loaves", "baby": "babies", "church": "churches", "tomato": "tomatoes",
    "index": "indices", "basis": "bases", "scarf": "scarves", "ferry": "ferries", "bus": "buses",
}  # fmt: skip

CATEGORIES = {
    "fruits": "banana cherry mango grape peach apricot papaya lime",
    "vegetables": "spinach leek turnip cabbage celery pumpkin beetroot kale",
    "birds": "heron robin crow owl swan falcon wren pelican",
    "fish": "trout salmon perch tuna carp eel sardine pike",
    "trees": "oak birch willow maple cedar beech larch poplar",
    "metals": "iron copper zinc nickel cobalt silver platinum tin",
    "colours": "red green violet orange turquoise brown indigo pink",
    "planets": "Mercury Venus Mars Jupiter Saturn Uranus Neptune Earth",
    "instruments": "violin flute oboe trumpet cello harp piano drum",
    "tools": "hammer pliers chisel saw drill wrench file level",
    "spices": "cumin saffron pepper cinnamon clove ginger nutmeg paprika",
    "rivers": "Nile Danube Amazon Rhine Ganges Mekong Volga Seine",
    "sports": "tennis rowing judo hockey cricket fencing curling golf",
    "insects": "ant moth beetle wasp cricket dragonfly aphid termite",
    "desserts": "custard tiramisu brownie sorbet pudding baklava eclair trifle",
    "fabrics": "linen silk wool velvet denim cotton felt satin",
    "vehicles": "tram bicycle ferry truck scooter helicopter van canoe",
    "flowers": "tulip daisy orchid lily poppy iris peony jasmine",
    "gemstones": "ruby emerald opal topaz garnet sapphire amethyst jade",
    "languages": "Finnish Hindi Swahili Welsh Korean Danish Tamil Basque",
    "dances": "waltz tango samba polka foxtrot rumba jive flamenco",
    "cheeses": "brie gouda feta cheddar ricotta halloumi edam camembert",
}

SUBJECTS = (
    "the gardener", "my sister", "a tired nurse", "the old captain", "our neighbour", "the new teacher",
    "a curious child", "the baker", "your cousin", "the violinist", "a young farmer", "the night guard",
    "the postman", "an honest lawyer", "the painter", "our coach", "the librarian", "a quiet student",
    "the tall waiter", "my uncle",
)  # fmt: skip

VERBS = {
    "opens": "opened", "paints": "painted", "carries": "carried", "sells": "sold", "finds": "found",
    "writes": "wrote", "breaks": "broke", "forgets": "forgot", "brings": "brought", "draws": "drew",
    "hides": "hid", "keeps": "kept", "loses": "lost", "repairs": "repaired", "steals": "stole",
    "throws": "threw", "washes": "washed", "buys": "bought", "catches": "caught", "chooses": "chose",
}  # fmt: skip

OBJECTS = (
    "a wooden box", "the blue door", "an old map", "two letters", "the garden gate", "a broken clock",
    "the last ticket", "a heavy basket", "the kitchen knife", "a silver ring", "some red paint",
    "the wet umbrella", "a small boat", "the long report", "an empty bottle", "the green bicycle",
)  # fmt: skip

PLACES = (
    "in the attic", "near the harbour", "after lunch", "before the storm", "at the market", "on Monday",
    "behind the school", "during the concert", "in the rain", "at midnight", "by the river", "every summer",
)  # fmt: skip

GREETINGS = (
    "Hi! ",
    "Hello, ",
    "Hey there. ",
    "Quick question: ",
    "Please help. ",
    "For my homework: ",
    "Good day. ",
)
"""Put before some questions, as people do."""

CLOSINGS = (
    " Thanks!",
    " Thank you.",
    " Please be exact.",
    " I am curious.",
    " It is for a quiz.",
    " Cheers.",
)
"""Put after some questions."""

TOPICS = {
    "beekeeping": "hives queens swarms nectar smoke frames",
    "sailing": "wind sails keels knots harbours currents",
    "sourdough baking": "starters flour hydration ovens crusts fermentation",
    "compound interest": "savings rates years deposits inflation fees",
    "photosynthesis": "light chlorophyll glucose oxygen leaves water",
    "vaccination": "antibodies doses trials immunity boosters outbreaks",
    "chess openings": "pawns development centres tempi gambits castling",
    "public libraries": "readers shelves catalogues loans archives budgets",
    "volcanoes": "magma craters ash plates eruptions gases",
    "solar panels": "cells inverters roofs sunlight batteries tariffs",
    "time management": "priorities calendars breaks deadlines habits interruptions",
    "version control": "commits branches merges reviews histories conflicts",
    "urban gardening": "balconies soil seeds compost pots pollinators",
    "the water cycle": "evaporation clouds rain rivers groundwater oceans",
    "machine translation": "corpora grammar models evaluation idioms tokens",
    "marathon training": "mileage rest shoes pacing carbohydrates injuries",
    "job interviews": "questions examples salaries preparation references posture",
    "glaciers": "ice moraines valleys climate crevasses meltwater",
    "electric cars": "batteries chargers range motors grids maintenance",
    "classical sonatas": "themes keys movements tempi cadences variations",
    "sleep": "rhythms dreams screens caffeine darkness naps",
    "recycling": "glass plastics sorting markets landfills packaging",
    "databases": "tables indexes transactions queries backups schemas",
    "coral reefs": "polyps algae fish bleaching currents tourism",
    "negotiation": "interests offers deadlines trust concessions silence",
    "the printing press": "type ink paper pamphlets literacy guilds",
    "houseplants": "light watering roots pots pests humidity",
    "medieval trade": "fairs guilds coins routes wool tolls",
    "public speaking": "audiences pauses slides rehearsal stories voice",
    "cloud computing": "servers costs regions latency scaling outages",
}
"""Subjects of long answers, each with the words that such an answer is about."""
